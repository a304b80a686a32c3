"""Where in its order a feed stands: what a trainer keeps in its checkpoint, and gives back to go on at the very next row."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actscope.errors import SettingsError

_FORM = re.compile(r"(\d{1,18}):(\d{1,18}):(\d{1,18})(?:@(\d{1,18})\+(\d{1,18}))?")


@dataclass(frozen=True, slots=True)
class StreamMark:
    """A place in the stream of an epoch: behind the first `skip` rows of chunk `chunk`."""

    chunk: int = 0
    skip: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """Behind the first `cursor` rows that epoch `epoch` serves.

    `mark` is where the rows of the window in which that is begin in the epoch's stream: without it, the texts before must be
    tokenized once more to find the place. As text: `seed:epoch:cursor`, or `seed:epoch:cursor@chunk+skip`.
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
        """Read what `str` gives. Raises SettingsError for anything else."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise SettingsError(f"feed position {text[:80]!r}: expected seed:epoch:cursor, perhaps with @chunk+skip")
        seed, epoch, cursor = (int(match[i]) for i in (1, 2, 3))
        mark = StreamMark(int(match[4]), int(match[5])) if match[4] else None
        return cls(seed, epoch, cursor, mark)
