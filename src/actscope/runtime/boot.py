"""The id of the machine's current boot."""

from __future__ import annotations

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return the kernel's id of this boot, a UUID as text, or an empty string if the kernel provides none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
