"""Synthetic texts, generated on demand by number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b

from actscope.engines.builtin.text import KINDS, SPLITS, generate
from actscope.errors import SettingsError

#: Number of evenly spaced texts in the fingerprint. A sample suffices, as a change of the generator changes most texts.
_SAMPLE = 256


class Generated:
    """A dataset of `n` synthetic texts of one kind. Text i is the first that `builtin.text.generate` yields for seed i."""

    def __init__(self, name: str, kind: str, split: str, n: int) -> None:
        if kind not in KINDS:
            raise SettingsError(f"texts {name!r}: expected builtin or one of {_named(KINDS)}")
        if split not in SPLITS:
            raise SettingsError(f"texts {name!r}: no split {split!r}: expected one of {', '.join(SPLITS)}")
        self.name = name
        self._kind, self._split, self._n = kind, split, n

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the kind, the split, the number of texts and a sample of them, in hex."""
        numbers = sorted({i * self._n // _SAMPLE for i in range(_SAMPLE)})
        digest = blake2b(f"{self._kind}/{self._split}/{self._n}".encode(), digest_size=16)
        for text in self.read(numbers):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def __len__(self) -> int:
        return self._n

    def read(self, numbers: Sequence[int]) -> list[str]:
        """Generate the texts with these numbers. Raises IndexError for a number out of range."""
        return [self._text(int(number)) for number in numbers]

    def _text(self, number: int) -> str:
        if not 0 <= number < self._n:
            raise IndexError(f"{self.name}: text {number} of {self._n}")
        return next(generate(number, self._kind, self._split)).text


def _named(kinds: Sequence[str]) -> str:
    return ", ".join(f"builtin:{kind}" for kind in kinds)
