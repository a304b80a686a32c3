"""The part of libbpf.so.1 that the collectors use, called through ctypes."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache

from actscope.errors import MetricsError

LIBRARY = "libbpf.so.1"
#: The one command that installs it.
INSTALL = "apt-get install libbpf1 (Debian, Ubuntu), dnf install libbpf (Fedora), zypper install libbpf1 (SUSE)"


class ProgramFacts(ctypes.Structure):
    """`struct bpf_prog_info` of linux/bpf.h, of which the last fields are used."""

    _fields_ = (
        ("type", c_uint32), ("id", c_uint32), ("tag", c_uint8 * 8), ("jited_len", c_uint32),
        ("xlated_len", c_uint32),
        ("jited", c_uint64), ("xlated", c_uint64), ("load_time", c_uint64), ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64), ("name", c_char * 16), ("ifindex", c_uint32), ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64), ("nr_jited_ksyms", c_uint32), ("nr_jited_func_lens", c_uint32), ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64), ("btf_id", c_uint32), ("func_info_rec_size", c_uint32), ("func_info", c_uint64),
        ("nr_func_info", c_uint32), ("nr_line_info", c_uint32), ("line_info", c_uint64), ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32), ("line_info_rec_size", c_uint32), ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32), ("prog_tags", c_uint64), ("run_time_ns", c_uint64), ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
    )  # fmt: skip


_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_mem": (c_void_p, (c_void_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, ctypes.c_bool)),
    "bpf_program__autoload": (ctypes.c_bool, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_lookup_batch": (
        c_int,
        (c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p),
    ),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
    "bpf_enable_stats": (c_int, (c_int,)),
}
#: Log lines of libbpf since the last load, for the message of a load that fails.
_said: list[str] = []


@cache
def libbpf() -> ctypes.CDLL:
    """Load libbpf once, with the signatures of its functions set.

    Raises:
        MetricsError: It is not installed, or is too old.
    """
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise MetricsError(f"{LIBRARY}: not found: {INSTALL}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise MetricsError(f"{LIBRARY}: has no {name}, so it is older than 1.0: {INSTALL}") from error
        function.restype, function.argtypes = result, arguments
    # the arguments of the message lie in a va_list, which vsnprintf takes on every architecture as it was given
    library.libbpf_set_print(_callback)
    return library


def _collect(level: int, form: bytes, arguments: int) -> int:
    """Keep a warning of libbpf (level 0), formatted by the C library."""
    if level == 0:
        buffer = ctypes.create_string_buffer(4096)
        ctypes.CDLL(None).vsnprintf(buffer, c_size_t(len(buffer)), form, c_void_p(arguments))
        _said.append(buffer.value.decode(errors="replace").strip())
    return 0


#: Kept for as long as libbpf may call it.
_callback = _PRINT(_collect)


def warnings_since() -> list[str]:
    """Return libbpf's warnings since the last call."""
    said = _said[:]
    _said.clear()
    return said


def failure(where: str) -> MetricsError:
    """Return the error of a call that has just failed, with errno's text and the last that libbpf said."""
    code = ctypes.get_errno()
    said = [line.removeprefix("libbpf: ") for line in warnings_since()]
    error = MetricsError(f"{where}: {os.strerror(code)}" + (f" ({'; '.join(said[-2:])[-600:]})" if said else ""))
    error.errno = code
    return error
