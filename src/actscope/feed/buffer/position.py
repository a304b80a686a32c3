"""Position in the order of a feed. A trainer keeps it in its checkpoint, and resumes with it at exactly the next row."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actscope.errors import SettingsError

_FORM = re.compile(r"(\d{1,18}):(\d{1,18}):(\d{1,18})(?:@(\d{1,18})\+(\d{1,18}))?")


@dataclass(frozen=True, slots=True)
class StreamMark:
    """Point in the stream of an epoch: after the first `skip` rows of chunk `chunk`."""

    chunk: int = 0
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """Point in the feed's order: after the first `cursor` rows that epoch `epoch` serves.

    Its text form is `seed:epoch:cursor` or `seed:epoch:cursor@chunk+skip`.

    Attributes:
        seed: Seed of the order.
        epoch: Epoch, from 0.
        cursor: Rows of the epoch before this point, all turns counted.
        mark: Point in the epoch's stream where the rows of the current window begin. Without it, a resumed feed tokenizes the
            preceding texts again to find that point.
    """

    seed: int
    epoch: int = 0
    cursor: int = 0
    mark: StreamMark | None = None

    def __str__(self) -> str:
        mark = f"@{self.mark.chunk}+{self.mark.skip}" if self.mark else ""
        return f"{self.seed}:{self.epoch}:{self.cursor}{mark}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Parse the text form. Raises SettingsError for any other text."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise SettingsError(
                f"feed position {text[:80]!r}: expected seed:epoch:cursor or seed:epoch:cursor@chunk+skip"
            )
        seed, epoch, cursor = (int(match[i]) for i in (1, 2, 3))
        mark = StreamMark(int(match[4]), int(match[5])) if match[4] else None
        return cls(seed, epoch, cursor, mark)
