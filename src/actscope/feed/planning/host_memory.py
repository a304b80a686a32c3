"""How much memory this machine, and the control group that we are in, would still give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from actscope.errors import SettingsError

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
#: cgroup v1 says "no limit" by the largest number of whole pages that there is.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory in bytes. `limit` and `used` are the control group's that leaves the least; `limit` 0 is none."""

    total: int
    available: int
    limit: int = 0
    used: int = 0
    huge_pages: str = ""
    """What the kernel does with huge pages for shared memory: always, within_size, advise, never, deny, force; "" not known."""

    @property
    def free(self) -> int:
        """What may still be taken."""
        return min(self.available, max(0, self.limit - self.used)) if self.limit else self.available

    @property
    def why(self) -> str:
        """Where `free` comes from, in words."""
        available = f"{gigabytes(self.available)} available of {gigabytes(self.total)} (MemAvailable)"
        if self.free == self.available:
            return available
        return f"{gigabytes(self.limit)} that the control group may have, less {gigabytes(self.used)} in use"


def this_machine(proc: Path = _PROC, cgroups: Path = _CGROUPS, huge_pages: Path = _HUGE_PAGES) -> Machine:
    """What there is now. Raises SettingsError where the kernel does not say."""
    found = _meminfo(proc / "meminfo")
    groups = list(_groups(proc / "self/cgroup", cgroups))
    limit, used = min(groups, key=lambda group: group[0] - group[1], default=(0, 0))
    return Machine(found["MemTotal"], found["MemAvailable"], limit, used, _chosen(huge_pages))


def has_gpu() -> bool:
    """Whether a driver for one is there; torch, which takes seconds to import, is not asked."""
    return any(path.exists() for path in _GPUS)


def gigabytes(n_bytes: float) -> str:
    """A size as people read it: 34.4 GB, 67.1 MB, 4.1 kB."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes:.0f} bytes"


def _meminfo(path: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
        found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
        return {name: found[name] for name in ("MemTotal", "MemAvailable")}
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(
            f"{path}: does not say how much memory there is ({error!r}); the feed runs on Linux"
        ) from error


def _groups(path: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """(limit, in use) of our control group and of those above it, where they have a limit; of both versions."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            yield from _limits(mount, own, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits(mount / "memory", own, *names)


def _limits(mount: Path, own: str, limit: str, usage: str, cache: str) -> Iterator[tuple[int, int]]:
    # in a container the path may be the host's, and only the mount itself is there: it stands for the group
    for group in dict.fromkeys((own, *map(str, PurePosixPath(own).parents), "/")):
        directory = mount / group.lstrip("/")
        most, used = _number(directory / limit), _number(directory / usage)
        if most is not None and used is not None and most < _NO_LIMIT:
            yield most, max(0, used - _cached(directory / "memory.stat", cache))


def _cached(path: Path, name: str) -> int:
    """Bytes of the page cache that the kernel gives back before it refuses memory."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
        return next((int(word[1]) for word in words if word[0] == name), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _chosen(path: Path) -> str:
    try:
        text = path.read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]
