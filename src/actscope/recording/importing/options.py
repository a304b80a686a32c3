"""Import options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from actscope.codecs import DTYPES
from actscope.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Description of a foreign stream, and codec of the recording.

    Raises:
        SettingsError: The dtype is not known, or the width is negative.
    """

    dtype: str = ""
    """dtype of a foreign stream's rows: float32, bfloat16 …"""
    width: int = 0
    """Number of values in a row of a foreign stream."""
    names: str = ""
    """Regular expression for the packet names of a foreign stream, with a group `site` and optionally `request` and
    `position`."""
    request: str = "imported"
    """Request id of packets whose name has none."""
    sites: tuple[str, ...] = ()
    """Patterns of the sites to import; empty: all."""
    codec: str = "lossless"
    """Codec of the recording's rows (see `actscope.codecs`)."""

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in DTYPES:
            raise SettingsError(f"dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.width < 0:
            raise SettingsError(f"width {self.width}: expected at least 1")

    def wants(self, site: str) -> bool:
        """Return whether a site is selected for import."""
        return not self.sites or any(fnmatchcase(site, pattern) for pattern in self.sites)

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """Return the compiled `names`, or None. Raises SettingsError when it is not valid or lacks the group `site`."""
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
