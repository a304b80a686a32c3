"""A loaded object: its programs run at their tracepoints until it is closed, and its maps can be read."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from ctypes import byref, c_size_t, c_uint32
from dataclasses import dataclass
from importlib import resources
from types import TracebackType

from actscope.metrics.bpf.libbpf import ProgramFacts, failure, libbpf, warnings_since

_BATCH = 2048
_STATS_RUN_TIME = 0
#: Maps of all objects that have a value for each CPU.
_PER_CPU = frozenset({"devices"})


@dataclass(frozen=True, slots=True)
class ProgramCost:
    """What one program has cost since it was attached.

    Attributes:
        runs: How often it ran. 0 unless statistics are switched on.
        run_ns: Time in it, in ns. 0 unless statistics are switched on.
        missed: Events that the kernel skipped, because the program was running on that CPU already.
    """

    name: str
    runs: int
    run_ns: int
    missed: int


class BpfMap:
    """A map of a loaded object: fixed-size keys and values, as bytes.

    Args:
        pointer: libbpf's `struct bpf_map *`.
        cpus: Number of values for each key: that of possible CPUs for a per-CPU map, else 1.
    """

    def __init__(self, pointer: int, cpus: int) -> None:
        self._lib = libbpf()
        self._fd: int = self._lib.bpf_map__fd(pointer)
        self.key_bytes: int = self._lib.bpf_map__key_size(pointer)
        # the kernel rounds the values of a per-CPU map up to 8 bytes
        size: int = self._lib.bpf_map__value_size(pointer)
        self.value_bytes = size if cpus == 1 else (size + 7) // 8 * 8 * cpus
        self._entries: int = self._lib.bpf_map__max_entries(pointer)

    def read(self) -> tuple[bytes, bytes]:
        """Return all keys and all values, each joined. An entry that is added or removed meanwhile may be in them or not."""
        size = min(_BATCH, self._entries)
        keys, values = bytearray(), bytearray()
        token = ctypes.create_string_buffer(max(self.key_bytes, 8))
        first = True
        while True:
            some_keys, some_values = (
                ctypes.create_string_buffer(size * one) for one in (self.key_bytes, self.value_bytes)
            )
            count = c_uint32(size)
            begin = None if first else token
            failed = self._lib.bpf_map_lookup_batch(self._fd, begin, token, some_keys, some_values, byref(count), None)
            code = ctypes.get_errno() if failed else 0
            if code == errno.ENOSPC and size < self._entries:  # one bucket of the hash table holds more than this
                size = self._entries
                continue
            if code not in (0, errno.ENOENT):
                raise failure("a map of the collector cannot be read")
            keys += memoryview(some_keys)[: count.value * self.key_bytes]
            values += memoryview(some_values)[: count.value * self.value_bytes]
            first = False
            if code == errno.ENOENT:  # the end
                return bytes(keys), bytes(values)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None if there is none."""
        value = ctypes.create_string_buffer(self.value_bytes)
        return None if self._lib.bpf_map_lookup_elem(self._fd, key, value) else value.raw

    def put(self, key: bytes, value: bytes, *, only_new: bool = False) -> bool:
        """Set a value. Returns whether it was set: not if `only_new` and there is one, or the map is full."""
        return bool(self._lib.bpf_map_update_elem(self._fd, key, value, int(only_new)) == 0)

    def remove(self, key: bytes) -> None:
        """Remove a key, if it is there."""
        self._lib.bpf_map_delete_elem(self._fd, key)


class LoadedObject:
    """Programs in the kernel and their maps.

    They live as long as this process: when it ends, also by kill -9, the kernel detaches and frees them.

    Args:
        name: The object's name: `programs/<name>.bpf.o` of this package.
        constants: Values of its `const volatile u32` variables, in the order of .rodata, by byte offset.
        entries: Numbers of entries of maps that are not to be as in the source.
        leave_out: Programs that are not to be loaded.

    Raises:
        MetricsError: libbpf is missing, or the kernel refuses the programs. Names the reason.
    """

    def __init__(
        self,
        name: str,
        constants: dict[int, int] | None = None,
        entries: dict[str, int] | None = None,
        leave_out: frozenset[str] = frozenset(),
    ) -> None:
        self._lib = libbpf()
        self._links: list[int] = []
        self._stats: int | None = None
        self._name = name
        self._image = resources.files("actscope.metrics.bpf").joinpath("programs", f"{name}.bpf.o").read_bytes()
        warnings_since()
        self._object: int | None = self._lib.bpf_object__open_mem(self._image, len(self._image), None)
        if not self._object:
            raise failure(f"{name}.bpf.o cannot be opened")
        try:
            self._prepare(constants or {}, entries or {}, leave_out)
            if self._lib.bpf_object__load(self._object):
                raise failure(f"the kernel does not take {name}.bpf.o")
            cpus: int = self._lib.libbpf_num_possible_cpus()
            self._maps = {
                one: BpfMap(pointer, cpus if one in _PER_CPU else 1)
                for one, pointer in self._each("map")
                if "." not in one
            }
            self.cpus = cpus
        except BaseException:
            self.close()
            raise

    def _prepare(self, constants: dict[int, int], entries: dict[str, int], leave_out: frozenset[str]) -> None:
        for name, pointer in self._each("program"):
            if name in leave_out:
                self._lib.bpf_program__set_autoload(pointer, False)
        for name, pointer in self._each("map"):
            if name in entries:
                self._lib.bpf_map__set_max_entries(pointer, entries[name])
            if name.endswith(".rodata"):
                size = c_size_t()
                address = self._lib.bpf_map__initial_value(pointer, byref(size))
                for offset, value in constants.items():
                    assert offset + 4 <= size.value
                    c_uint32.from_address(address + offset).value = value

    def _each(self, kind: str) -> Iterator[tuple[str, int]]:
        """Yield names and pointers of the object's maps or programs."""
        following = getattr(self._lib, f"bpf_object__next_{kind}")
        name_of = getattr(self._lib, f"bpf_{kind}__name")
        one = following(self._object, None)
        while one:
            yield name_of(one).decode(), one
            one = following(self._object, one)

    def attach(self) -> None:
        """Attach all programs that were loaded, in the order of the source.

        Raises:
            MetricsError: The kernel has no such tracepoint, or refuses.
        """
        for name, pointer in self._each("program"):
            if self._lib.bpf_program__autoload(pointer):
                self.attach_program(name, pointer)

    def attach_program(self, name: str, pointer: int) -> None:
        """Attach one program."""
        link = self._lib.bpf_program__attach(pointer)
        if not link:
            raise failure(f"{self._name}: {name} cannot be attached")
        self._links.append(link)

    def map(self, name: str) -> BpfMap:
        """Return the map of this name."""
        return self._maps[name]

    def measure_cost(self) -> bool:
        """Let the kernel time all BPF programs of the machine until this object is closed. Returns whether it does."""
        fd: int = self._lib.bpf_enable_stats(_STATS_RUN_TIME)
        self._stats = fd if fd >= 0 else None
        return fd >= 0

    def costs(self) -> list[ProgramCost]:
        """Return what each loaded program has cost."""
        found = []
        for name, pointer in self._each("program"):
            fd = self._lib.bpf_program__fd(pointer)
            if fd < 0:
                continue
            facts, size = ProgramFacts(), c_uint32(ctypes.sizeof(ProgramFacts))
            if self._lib.bpf_obj_get_info_by_fd(fd, byref(facts), byref(size)):
                raise failure(f"{self._name}: the cost of {name} cannot be read")
            found.append(ProgramCost(name, facts.run_cnt, facts.run_time_ns, facts.recursion_misses))
        return found

    def detach(self) -> None:
        """Detach the programs; the maps stay readable. Idempotent."""
        while self._links:
            self._lib.bpf_link__destroy(self._links.pop())

    def close(self) -> None:
        """Detach the programs and free them and their maps. Idempotent."""
        self.detach()
        if self._stats is not None:
            os.close(self._stats)
            self._stats = None
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None

    def __enter__(self) -> LoadedObject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
