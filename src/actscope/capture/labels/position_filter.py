"""Granularity: the points to capture in each layer, and the positions to keep of each request.

    full                     every position
    attention | mlp          every position, of the outputs of attention blocks or MLPs
    sampled:TERM[+TERM...]   the positions that any term selects:
        8                    every 8th position of a request: 0, 8, 16 ...
        first=16             the first 16 positions
        last=4               the last 4 positions of the prompt
        prompt, generated    all positions of the prompt; all positions after it

The same rows are kept at all sites of a pass. Each kept row carries its own position, so labels stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actscope.errors import SettingsError
from actscope.near_miss import hint

_POINTS = {"attention": ("attn_out",), "mlp": ("mlp_out",)}
_USAGE = (
    "expected full, attention, mlp or sampled:TERM[+TERM...] with terms such as 8, first=16, last=4, prompt, generated"
)


@dataclass(frozen=True, slots=True)
class PositionFilter:
    """A parsed granularity. `points` is None if the granularity does not select any."""

    points: tuple[str, ...] | None = None
    every: int = 0
    first: int = 0
    last: int = 0
    prompt: bool = False
    generated: bool = False

    @classmethod
    def parse(cls, text: str) -> PositionFilter:
        """Parse a granularity. Raises SettingsError if it is malformed."""
        name, _, terms = text.partition(":")
        if name in ("full", *_POINTS) and not terms:
            return cls(_POINTS.get(name))
        if name != "sampled" or not terms:
            near = hint(name, ("full", "attention", "mlp", "sampled:8"), form=repr)
            raise SettingsError(f"granularity {text!r}: {_USAGE}{near}")
        found: dict[str, int | bool] = {}
        for term in terms.split("+"):
            found.update(_term(term.strip(), text))
        return cls(None, **found)  # type: ignore[arg-type]  # the fields that terms name

    @property
    def selects(self) -> bool:
        """Whether the filter can omit positions."""
        return bool(self.every or self.first or self.last or self.prompt or self.generated)

    def wanted(self, positions: np.ndarray, n_prompt: np.ndarray) -> np.ndarray:
        """Return which positions are kept, bool [lanes, columns].

        Args:
            positions: int64 [lanes, columns].
            n_prompt: Prompt length of each lane, int64 [lanes].
        """
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
        """Return the fraction of positions kept for a request of `n_tokens` whose first half is the prompt."""
        half = n_tokens // 2
        return float(self.wanted(np.arange(n_tokens)[None, :], np.array([half])).mean())


def _term(term: str, text: str) -> dict[str, int | bool]:
    if term in ("prompt", "generated"):
        return {term: True}
    name, _, number = term.rpartition("=")
    if name not in ("", "first", "last") or not number.isdecimal() or int(number) < 1:
        raise SettingsError(f"granularity {text!r}: cannot read {term!r}; {_USAGE}")
    return {name or "every": int(number)}
