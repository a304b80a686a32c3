"""Block devices by the names that people know, and the devices under a file, from sysfs.

/sys/class/block/<name>      partition (number), dm/name, dm/uuid, md/level, loop/backing_file, slaves/, holders/
/proc/self/mountinfo         the file system of a path, where st_dev is not a device's (overlay, btrfs)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NVME_PATH = re.compile(r"nvme(\d+)c\d+n(\d+)")
#: File systems in memory: there is no device.
MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
_DM_KINDS = {"LVM": "lvm", "CRYPT": "crypt", "mpath": "mpath", "part": "partition"}


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A block device.

    Attributes:
        name: The kernel's name, such as `nvme0n1p2`.
        kind: disk, partition, loop, lvm, crypt, mpath, dm, raid, nvme-path or zram.
        label: Name that a person knows (of the volume, of the array, the file of a loop device); "" if it has none.
        parents: Names of the devices that it lies on.
        holders: Names of the devices that lie on it.
        own_requests: Whether it has requests of its own. The others hand theirs to their parents.
    """

    name: str
    kind: str = "disk"
    label: str = ""
    parents: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    own_requests: bool = True

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.kind}{' ' + self.label if self.label else ''})" if self.kind != "disk" else self.name
        )


class BlockDevices:
    """The block devices of the machine, read from sysfs when they are asked for.

    Args:
        sys: Mount point of sysfs.
        proc: Mount point of procfs.
    """

    def __init__(self, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        self._class, self._dev, self._proc = sys / "class/block", sys / "dev/block", proc
        self._partitions: dict[tuple[str, int], str] = {}

    def names(self) -> list[str]:
        """Return the names of all block devices; empty if sysfs cannot be read."""
        return _listed(self._class)

    def device(self, name: str) -> BlockDevice:
        """Return a device by its kernel name. One that sysfs does not know (it was removed, or is hidden) is a bare disk."""
        at = self._class / name
        kind, label = self._kind(name, at)
        parents = [*_listed(at / "slaves"), *self._above(name, at, kind)]
        return BlockDevice(
            name,
            kind,
            label,
            tuple(parents),
            tuple(_listed(at / "holders")),
            (at / "mq").is_dir() or kind == "partition",
        )

    def partition(self, disk: str, number: int) -> str:
        """Return the name of a disk's partition; 0 is the disk itself."""
        if number == 0:
            return disk
        key = (disk, number)
        if key not in self._partitions:
            found = (
                name
                for name in _listed(self._class / disk)
                if _text(self._class / disk / name / "partition") == str(number)
            )
            self._partitions[key] = next(found, f"{disk}{'p' if disk[-1:].isdigit() else ''}{number}")
        return self._partitions[key]

    def in_flight(self, name: str) -> int | None:
        """Return how many requests a device works on, according to sysfs; None if that cannot be read."""
        fields = _text(self._class / name / "inflight").split()
        return sum(map(int, fields)) if len(fields) == 2 and all(map(str.isdigit, fields)) else None

    def chain(self, name: str) -> list[BlockDevice]:
        """Return a device and all that it lies on, from the top down, each once."""
        found: dict[str, BlockDevice] = {}
        waiting = [name]
        while waiting:
            one = waiting.pop(0)
            if one not in found:
                found[one] = self.device(one)
                waiting += found[one].parents
        return list(found.values())

    def under(self, path: Path) -> list[BlockDevice]:
        """Return the devices under a file or directory, from the top down. Empty if there is none: a file system in memory."""
        return self._under(path, 8)

    def _under(self, path: Path, depth: int) -> list[BlockDevice]:
        if depth == 0:
            return []
        number = os.stat(path).st_dev
        link = self._dev / f"{os.major(number)}:{os.minor(number)}"
        name = link.resolve().name if link.exists() else self._of_mount(path, depth)
        return self._with_files(self.chain(name), depth) if name else []

    def _with_files(self, chain: list[BlockDevice], depth: int) -> list[BlockDevice]:
        """Continue below a loop device with the device of its file."""
        below: list[BlockDevice] = []
        for device in chain:
            if device.kind == "loop" and device.label and Path(device.label).exists():
                below += self._under(Path(device.label), depth - 1)
        return [*chain, *(one for one in below if one not in chain)]

    def _of_mount(self, path: Path, depth: int) -> str:
        """Return the device of a path whose st_dev is that of no device: the file system's source, or that of its layers."""
        mount = mount_of(path, self._proc)
        if mount is None or mount.kind in MEMORY:
            return ""
        if mount.kind == "overlay":
            upper = mount.options.get("upperdir", "")
            below = self._under(Path(upper), depth - 1) if upper and os.path.exists(upper) else []
            return below[0].name if below else ""
        return Path(mount.source).resolve().name if mount.source.startswith("/dev/") else ""

    def _kind(self, name: str, at: Path) -> tuple[str, str]:
        if (at / "partition").exists():
            return "partition", ""
        if (at / "dm").is_dir():
            prefix = re.split(r"[-\d]", _text(at / "dm/uuid"), maxsplit=1)[0]
            return _DM_KINDS.get(prefix, "dm"), _text(at / "dm/name")
        if (at / "md").is_dir():
            return "raid", _text(at / "md/level")
        if name.startswith("loop"):
            return "loop", _text(at / "loop/backing_file")
        if _NVME_PATH.fullmatch(name):
            return "nvme-path", ""
        return ("zram", "") if name.startswith("zram") else ("disk", "")

    def _above(self, name: str, at: Path, kind: str) -> Iterator[str]:
        """Yield what a partition or a head of multipath paths lies on, which is not in `slaves`."""
        if kind == "partition" and at.exists():
            parent = at.resolve().parent.name
            if parent and parent != "block":
                yield parent
        head = re.fullmatch(r"nvme(\d+)n(\d+)", name)
        if head:
            paths = (m for m in map(_NVME_PATH.fullmatch, self.names()) if m and m.groups() == head.groups())
            yield from (m[0] for m in paths)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    point: str
    kind: str
    source: str
    options: dict[str, str]


def mount_of(path: Path, proc: Path = Path("/proc")) -> Mount | None:
    """Return the mount that a path lies in: the last one with the longest mount point that contains it."""
    whole = os.path.realpath(path)
    best: Mount | None = None
    for mount in mounts(proc):
        inside = whole == mount.point or whole.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def mounts(proc: Path = Path("/proc")) -> Iterator[Mount]:
    """Yield the mounts of this process's namespace."""
    try:
        lines = (proc / "self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        left, found, right = line.partition(" - ")
        fields, more = left.split(" "), right.split(" ")
        if found and len(fields) > 4 and len(more) > 2:
            pairs = (one.partition("=") for one in more[2].split(","))
            yield Mount(_plain(fields[4]), more[0], _plain(more[1]), {key: _plain(value) for key, _, value in pairs})


def _plain(text: str) -> str:
    """Undo mountinfo's octal escapes of space, tab, line break and backslash."""
    return re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), text)


def _listed(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
