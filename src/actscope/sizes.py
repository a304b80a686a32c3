"""Parser of human-readable sizes in bytes."""

from __future__ import annotations

import re

from actscope.errors import SettingsError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """Parse a size such as "2GB", "512MiB", "100MB/s" or "1e9".

    Args:
        text: A number and an optional decimal (kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB) unit.

    Returns:
        The size in bytes.

    Raises:
        SettingsError: The text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9.eE+]+?)\s*([KMGT]I?)?B?(?:/S)?\s*", text.upper())
    try:
        if match is None:
            raise ValueError
        return int(float(match[1]) * _UNITS[match[2] or ""])
    except (ValueError, OverflowError):
        raise SettingsError(f"size {text!r}: expected e.g. 2GB, 512MiB or a number of bytes") from None
