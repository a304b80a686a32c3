"""Granularity: which points of the layers are read, and which positions of each request are kept.

    full                     every position
    attention | mlp          every position, of what the attention blocks or the MLPs give
    sampled:TERM[+TERM...]   the positions that any term names:
        8                    every 8th position of a request: 0, 8, 16 ...
        first=16             the first 16 positions
        last=4               the last 4 positions of the prompt
        prompt, generated    all positions of the prompt; all that came after it

One selection of rows holds for all sites of a pass, so labels stay exact: a row that is kept says its own position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actscope.errors import SettingsError

_POINTS = {"attention": ("attn_out",), "mlp": ("mlp_out",)}
_USAGE = (
    "expected full, attention, mlp or sampled:TERM[+TERM...] with terms such as 8, first=16, last=4, prompt, generated"
)


@dataclass(frozen=True, slots=True)
class PositionFilter:
    """What `parse` has read. `points` is None where the granularity does not choose any."""

    points: tuple[str, ...] | None = None
    every: int = 0
    first: int = 0
    last: int = 0
    prompt: bool = False
    generated: bool = False

    @classmethod
    def parse(cls, text: str) -> PositionFilter:
        """Read a granularity; raises SettingsError for anything else."""
        name, _, terms = text.partition(":")
        if name in ("full", *_POINTS) and not terms:
            return cls(_POINTS.get(name))
        if name != "sampled" or not terms:
            raise SettingsError(f"granularity {text!r}: {_USAGE}")
        found: dict[str, int | bool] = {}
        for term in terms.split("+"):
            found.update(_term(term.strip(), text))
        return cls(None, **found)  # type: ignore[arg-type]  # the fields that terms name

    @property
    def selects(self) -> bool:
        """Whether any position is left out."""
        return bool(self.every or self.first or self.last or self.prompt or self.generated)

    def wanted(self, positions: np.ndarray, n_prompt: np.ndarray) -> np.ndarray:
        """Which of `positions` int64 [lanes, columns] are kept, given each lane's prompt length int64 [lanes]: bool."""
        ends = n_prompt[:, None]
        keep = np.full(positions.shape, not self.selects)
        if self.every:
            keep |= positions % self.every == 0
        keep |= positions < self.first
        if self.last:
            keep |= (positions >= ends - self.last) & (positions < ends)
        if self.prompt:
            keep |= positions < ends
        if self.generated:
            keep |= positions >= ends
        return keep

    def share(self, n_tokens: int = 1000) -> float:
        """About which share of a request's positions is kept, for one of `n_tokens` that is half prompt."""
        half = n_tokens // 2
        return float(self.wanted(np.arange(n_tokens)[None, :], np.array([half])).mean())


def _term(term: str, text: str) -> dict[str, int | bool]:
    if term in ("prompt", "generated"):
        return {term: True}
    name, _, number = term.rpartition("=")
    if name not in ("", "first", "last") or not number.isdecimal() or int(number) < 1:
        raise SettingsError(f"granularity {text!r}: cannot read {term!r}; {_USAGE}")
    return {name or "every": int(number)}
