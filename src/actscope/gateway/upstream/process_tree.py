"""Which processes serve a port of this machine, and whether an engine's process is one of their family (Linux, by /proc).

Several vLLM servers may run here with the same model. The card of an engine has its process; its server is that process
or an ancestor of it, and holds the listening socket.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from actscope.runtime.process import parent_of

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})
_LISTEN = "0A"


def servers_of(address: str) -> frozenset[int]:
    """Processes that listen where `http://localhost:port` leads; empty when that is elsewhere, or cannot be seen."""
    split = urlsplit(address)
    if split.scheme not in ("http", "https") or split.hostname not in _LOOPBACK:
        return frozenset()
    sockets = _listening(split.port or (443 if split.scheme == "https" else 80))
    return frozenset(pid for pid in _pids() if sockets and _holds(pid, sockets))


def descends(pid: int, ancestors: frozenset[int]) -> bool:
    """Whether `pid` is one of `ancestors`, or a child of one, however far down."""
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        if pid in ancestors:
            return True
        seen.add(pid)
        pid = parent_of(pid)
    return False


def is_vllm(pid: int) -> bool:
    """Whether it was started as vLLM, or has named itself so: a proxy in front of one was not."""
    return "vllm" in _read(Path(f"/proc/{pid}/cmdline")).lower()


def _listening(port: int) -> frozenset[str]:
    """The sockets that listen on this port, as their links in /proc/<pid>/fd read."""
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
    except OSError:  # it has ended, or is another user's
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
