"""Pressure stall information (PSI): how long tasks waited for CPU, I/O and memory, of the machine and of control groups."""

from __future__ import annotations

from pathlib import Path

from actscope.metrics.lines import Pressure, Pressures
from actscope.metrics.sources.devices import mounts

RESOURCES = ("cpu", "io", "memory")
ENABLE = "boot with psi=1 (for example: grubby --update-kernel=ALL --args=psi=1)"


def machine_pressure(root: Path = Path("/proc/pressure")) -> tuple[Pressures, str]:
    """Return the pressure of the machine, and what is missing with what to do about it ("" if nothing is)."""
    found: Pressures = {}
    reason = ""
    for resource in RESOURCES:
        try:
            found[resource] = parse_pressure((root / resource).read_text())
        except OSError as error:
            reason = f"pressure: {root / resource}: {error.strerror}: {ENABLE}"
        except ValueError as error:
            reason = f"pressure: {root / resource}: malformed ({error}): this kernel writes it differently"
    return found, reason


def cgroup_pressure(pid: int, proc: Path = Path("/proc")) -> tuple[str, Pressures]:
    """Return the path of a process's control group (v2) and its pressure; ("", {}) if it has none that can be read."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return "", {}
    path = next((line[3:] for line in lines if line.startswith("0::")), "")
    root = next((mount.point for mount in mounts(proc) if mount.kind == "cgroup2"), "")
    if not path or not root:
        return "", {}
    found: Pressures = {}
    for resource in RESOURCES:
        try:
            found[resource] = parse_pressure(Path(f"{root}{path}/{resource}.pressure").read_text())
        except (OSError, ValueError):
            continue  # the root group has none, and a group may have been removed
    return (path, found) if found else ("", {})


def parse_pressure(text: str) -> dict[str, Pressure]:
    """Parse a PSI file: lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=12`.

    Raises:
        ValueError: A line has another form.
    """
    found = {}
    for line in text.splitlines():
        share, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        try:
            avg10, avg60, avg300 = (float(values[name]) for name in ("avg10", "avg60", "avg300"))
            found[share] = Pressure(avg10, avg60, avg300, int(values["total"]))
        except KeyError as error:
            raise ValueError(f"no {error} in {line!r}") from error
    return found
