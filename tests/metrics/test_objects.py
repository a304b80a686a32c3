"""The objects that are shipped are what the source beside them compiles to."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import actscope.metrics.bpf as package

PROGRAMS = Path(package.__file__).parent / "programs"
#: The compiler that the shipped objects are of: Debian 12's.
PINNED = "14."


def sections(path: Path) -> dict[str, bytes]:
    """Return the sections of an ELF object of 64 bits by name: programs, their relocations, constants, maps."""
    data = path.read_bytes()
    assert data[:4] == b"\x7fELF"
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
    strings = heads[names][4]
    return {
        data[strings + head[0] : data.index(b"\0", strings + head[0])].decode(): data[head[4] : head[4] + head[5]]
        for head in heads
    }


def code(path: Path) -> dict[str, bytes]:
    """Return the instructions of an object: without types and line numbers, which depend on where it was compiled."""
    return {
        name: data for name, data in sections(path).items() if re.match(r"\.text|raw_tp|tp_btf|\.rodata|license", name)
    }


@pytest.mark.parametrize("name", ["blockio", "system"])
def test_a_rebuild_gives_the_same_instructions(tmp_path: Path, name: str) -> None:
    if shutil.which("clang") is None or shutil.which("llvm-strip") is None:
        pytest.skip("clang and llvm-strip are not installed: bash scripts/bpf.sh")
    version = subprocess.run(["clang", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    if not version.startswith(PINNED):
        pytest.skip(f"the objects are of clang {PINNED}x, this is {version.strip()}")
    built = subprocess.run(["bash", str(PROGRAMS / "build.sh"), str(tmp_path)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    shipped, rebuilt = code(PROGRAMS / f"{name}.bpf.o"), code(tmp_path / f"{name}.bpf.o")
    assert len(shipped) > 4
    assert shipped == rebuilt


def test_the_objects_are_small_and_run_on_every_kernel() -> None:
    """They have relocations for the kernel's types, and no line of theirs names a directory."""
    for path in PROGRAMS.glob("*.bpf.o"):
        assert path.stat().st_size < 40_000
        assert b"/work" not in path.read_bytes()
        assert b"/home" not in path.read_bytes()
        assert ".BTF.ext" in sections(path)


def test_the_layouts_that_python_reads_are_those_of_c() -> None:
    """Sizes of the structures, as the maps of the objects have them."""
    from support.metrics.machine import need_programs

    need_programs()
    from actscope.metrics.bpf.loaded import LoadedObject
    from actscope.metrics.sources import blockio, offcpu

    with LoadedObject("blockio") as io, LoadedObject("system", leave_out=frozenset({"sched_switch_3"})) as system:
        assert io.map("flights").value_bytes == blockio._FLIGHT.itemsize
        assert io.map("devices").key_bytes == blockio._DEVICE.itemsize
        assert io.map("devices").value_bytes == blockio._TOTALS.itemsize * io.cpus
        assert system.map("threads").value_bytes == offcpu._THREAD.itemsize
        assert (system.map("wakes").key_bytes, system.map("wakes").value_bytes) == (
            offcpu._WAKE_KEY.itemsize,
            offcpu._WAKE.itemsize,
        )
        assert (system.map("long_waits").key_bytes, system.map("long_waits").value_bytes) == (
            offcpu._LONG_KEY.itemsize,
            offcpu._LONG.itemsize,
        )
