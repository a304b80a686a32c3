"""Find the processes that listen on a local port, and test whether an engine's process descends from one (Linux, /proc).

Several vLLM servers on one machine may serve the same model. An engine's card has the id of its process. Its server, which
holds the listening socket, is that process or an ancestor of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from actscope.runtime.process import parent_of

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})
_LISTEN = "0A"


def servers_of(address: str) -> frozenset[int]:
    """Return the ids of the processes that listen at an `http://localhost:port` address.

    Empty if the address is on another machine, or the processes are not visible (another user or container).
    """
    split = urlsplit(address)
    if split.scheme not in ("http", "https") or split.hostname not in _LOOPBACK:
        return frozenset()
    sockets = _listening(split.port or (443 if split.scheme == "https" else 80))
    return frozenset(pid for pid in _pids() if sockets and _holds(pid, sockets))


def descends(pid: int, ancestors: frozenset[int]) -> bool:
    """Return whether `pid` is one of `ancestors` or a descendant of one."""
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        if pid in ancestors:
            return True
        seen.add(pid)
        pid = parent_of(pid)
    return False


def is_vllm(pid: int) -> bool:
    """Return whether "vllm" occurs in the process's command line, as started or as set later by the process itself.

    This tells vLLM's server from a proxy in front of it.
    """
    return "vllm" in _read(Path(f"/proc/{pid}/cmdline")).lower()


def _listening(port: int) -> frozenset[str]:
    """Return the sockets that listen on a port, in the form of the links in /proc/<pid>/fd: `socket:[inode]`."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in _read(Path("/proc/net") / name).splitlines()[1:]]
    return frozenset(
        f"socket:[{f[9]}]" for f in lines if len(f) > 9 and f[3] == _LISTEN and int(f[1].rpartition(":")[2], 16) == port
    )


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def _holds(pid: int, sockets: frozenset[str]) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        return any(_link(f"{directory}/{name}") in sockets for name in os.listdir(directory))
    except OSError:  # the process has ended, or belongs to another user
        return False


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
