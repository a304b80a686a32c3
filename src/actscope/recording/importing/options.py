"""Import options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from actscope.errors import SettingsError
from actscope.near_miss import hinted_class

#: Widest row: of any dtype it fits a block.
_MOST_WIDTH = 1 << 24


@hinted_class
@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Description of a foreign stream, and codec of the recording.

    Raises:
        SettingsError: The dtype is not known, or the width is negative.
    """

    dtype: str = ""
    """Foreign stream: dtype of its rows, e.g. float16 or bfloat16."""
    width: int = 0
    """Foreign stream: number of values in a row."""
    names: str = ""
    """Foreign stream: regular expression for the names of its packets, with a group `site` and optionally `request` and
    `position`, e.g. '(?P<site>.+)_step(?P<position>[0-9]+)'."""
    request: str = "imported"
    """Foreign stream: request id of packets whose name has none."""
    sites: tuple[str, ...] = ()
    """Pattern of sites to import, e.g. layers.*.mlp_out. Repeatable. By default all."""
    codec: str = "lossless"
    """Codec of the recording's rows: see `actscope capture --help`."""

    def __post_init__(self) -> None:
        from actscope.codecs import DTYPES  # here: flags are made of this class, and help is light

        if self.dtype and self.dtype not in DTYPES:
            raise SettingsError(f"dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if not 0 <= self.width <= _MOST_WIDTH:
            raise SettingsError(f"width {self.width}: expected 1 to {_MOST_WIDTH}")

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
