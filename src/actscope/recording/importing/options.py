"""What a foreign stream does not say, and how its rows are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from actscope.codecs import DTYPES
from actscope.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a foreign stream does not say, and how its rows are kept."""

    dtype: str = ""
    """Dtype of the rows of a foreign stream: float32, bfloat16 …"""
    width: int = 0
    """Numbers in one row of a foreign stream."""
    names: str = ""
    """A regular expression for the names of a foreign stream's packets, with a group `site`, and `request` and `position` if
    the names say them."""
    request: str = "imported"
    """The request of packets that do not say theirs."""
    sites: tuple[str, ...] = ()
    """Patterns of the sites to take; empty: all."""
    codec: str = "lossless"
    """How the rows are kept (see `actscope.codecs`)."""

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in DTYPES:
            raise SettingsError(f"dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.width < 0:
            raise SettingsError(f"width {self.width}: expected at least 1")

    def wants(self, site: str) -> bool:
        return not self.sites or any(fnmatchcase(site, pattern) for pattern in self.sites)

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """The names' pattern; SettingsError where it is not one."""
        if not self.names:
            return None
        try:
            pattern = re.compile(self.names)
        except re.error as error:
            raise SettingsError(f"names {self.names!r}: not a regular expression: {error}") from error
        if "site" not in pattern.groupindex:
            raise SettingsError(
                f"names {self.names!r}: expected a group (?P<site>…), and if there are, request and position"
            )
        return pattern
