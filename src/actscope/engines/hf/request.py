"""Requests to the engine, and their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from actscope.errors import RequestRefused

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. Temperature 0 is greedy. A `seed` makes a request's draws repeatable in any batch.

    Raises RequestRefused for a value out of range.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken. Division by such a low temperature would overflow."""
        return self.temperature < 1e-5

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestRefused(f"{name} must lie between {low} and {high}, found {value}", param=name)
        if len(self.stop) > 16 or any(not s or len(s) > 1000 for s in self.stop):
            raise RequestRefused("stop takes up to 16 strings of 1 to 1000 characters", param="stop")


_BOUNDS = (
    ("max_tokens", 1, 1 << 24), ("temperature", 0.0, 100.0), ("top_p", 1e-9, 1.0), ("top_k", -1, 1 << 24),
    ("seed", -(1 << 63), (1 << 64) - 1),
    ("min_p", 0.0, 1.0), ("presence_penalty", -2.0, 2.0), ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 1e-3, 100.0),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    """Output of one step for one request. `text` may be empty while a character or a stop string is incomplete."""

    request: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to continue."""

    id: str
    prompt_ids: Sequence[int]
    sampling: Sampling
