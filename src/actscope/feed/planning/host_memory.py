"""Free memory of this machine, limited by the control groups of this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from actscope.errors import SettingsError

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
#: cgroup v1 writes "no limit" as the largest multiple of the page size; anything from here on counts as none.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory of a machine, in bytes. `limit` and `used` are those of the tightest control group; `limit` 0 means none."""

    total: int
    available: int
    limit: int = 0
    used: int = 0
    huge_pages: str = ""
    """The kernel's policy for huge pages in shared memory: always, within_size, advise, never, deny, force; "" if unknown."""

    @property
    def free(self) -> int:
        """Bytes that may still be allocated."""
        return min(self.available, max(0, self.limit - self.used)) if self.limit else self.available

    @property
    def why(self) -> str:
        """Origin of `free`, in words."""
        available = f"{gigabytes(self.available)} available of {gigabytes(self.total)} (MemAvailable)"
        if self.free == self.available:
            return available
        return f"{gigabytes(self.limit)} limit of the control group, less {gigabytes(self.used)} in use"


def this_machine(proc: Path = _PROC, cgroups: Path = _CGROUPS, huge_pages: Path = _HUGE_PAGES) -> Machine:
    """Return the memory of this machine now. Raises SettingsError if the kernel does not report it."""
    found = _meminfo(proc / "meminfo")
    groups = list(_groups(proc / "self/cgroup", cgroups))
    limit, used = min(groups, key=lambda group: group[0] - group[1], default=(0, 0))
    return Machine(found["MemTotal"], found["MemAvailable"], limit, used, _chosen(huge_pages))


def has_gpu() -> bool:
    """Return whether a GPU driver is present. Does not import torch, which would take seconds."""
    return any(path.exists() for path in _GPUS)


def gigabytes(n_bytes: float) -> str:
    """Format a size for people: 34.4 GB, 67.1 MB, 4.1 kB."""
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
            f"{path}: the amount of memory cannot be read from it ({error!r}); the feed runs on Linux"
        ) from error


def _groups(path: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes in use) of this process's control group and its ancestors that have a limit, of cgroup v1 and v2."""
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
    # in a container the path may be the host's, and only the mount point itself exists: it is then the group
    for group in dict.fromkeys((own, *map(str, PurePosixPath(own).parents), "/")):
        directory = mount / group.lstrip("/")
        most, used = _number(directory / limit), _number(directory / usage)
        if most is not None and used is not None and most < _NO_LIMIT:
            yield most, max(0, used - _cached(directory / "memory.stat", cache))


def _cached(path: Path, name: str) -> int:
    """Return the bytes of page cache that the kernel reclaims before it refuses memory."""
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
    """Return the bracketed word of a kernel setting such as `always [advise] never`; "" if there is none."""
    try:
        text = path.read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]
