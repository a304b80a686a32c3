"""Counts and sizes in bytes, as people write them."""

from __future__ import annotations

import re

from actscope.errors import SettingsError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_COUNT = re.compile(r"(-?\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([KMGT]I?)?", re.ASCII | re.IGNORECASE)


def parse_count(text: str) -> int:
    """Parse a whole number such as "4096", "64k", "64Ki", "1.5M" or "2e6". Raises SettingsError for any other text."""
    match = _COUNT.fullmatch(text.strip())
    if match and match[1].lstrip("-").isdecimal():  # exact, also above 2^53
        return int(match[1]) * _UNITS[(match[2] or "").upper()]
    value = float(match[1]) * _UNITS[(match[2] or "").upper()] if match else 0.5
    if value != int(value):
        raise SettingsError(f"{text!r}: expected a whole number, such as 4096, 64k, 1M or 2e6")
    return int(value)


def bytes_text(size: int) -> str:
    """Return a text such as "1GB" or "16MiB" that `parse_bytes` reads as exactly this size."""
    exact = [(unit, name) for name, unit in _UNITS.items() if size and size % unit == 0]
    unit, name = max(exact, default=(1, ""))
    return f"{size // unit}{name.replace('I', 'i')}B" if name else str(size)


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
