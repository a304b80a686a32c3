"""Memory that this process can still allocate, to refuse what a file asks for before it is allocated."""

from __future__ import annotations

import resource
from pathlib import Path

from actscope.errors import ActscopeError

_MEMINFO, _STATM = Path("/proc/meminfo"), Path("/proc/self/statm")
_PAGE = resource.getpagesize()


def available_bytes() -> int:
    """Return about how many bytes this process can allocate: MemAvailable of the machine, and the rest of RLIMIT_AS.

    Returns 2**63 - 1 where the kernel tells neither.
    """
    return min(_machine(), _limit())


def check_room(n_bytes: int, error: type[ActscopeError], what: str) -> None:
    """Raise `error` if `n_bytes` cannot be allocated. `what` begins the message: the place, and what takes the memory."""
    available = available_bytes()
    if n_bytes > available:
        raise error(
            f"{what} takes {n_bytes / 2**30:.3g} GiB of memory, and {available / 2**30:.3g} GiB are available: "
            "the file is damaged, or needs a larger machine"
        )


def _machine() -> int:
    try:
        lines = _MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return (1 << 63) - 1


def _limit() -> int:
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft == resource.RLIM_INFINITY:
        return (1 << 63) - 1
    try:
        return max(0, soft - int(_STATM.read_text().split()[0]) * _PAGE)
    except (OSError, ValueError, IndexError):
        return soft
