"""Scopes: what the user's code has said of the passes it is about to run. One stack for each thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from actscope.capture.labels.sequences import Sequences
from actscope.errors import SettingsError


@dataclass(slots=True, eq=False)
class Generation:
    """A call of `generate`: how many columns its prompt has, and the token ids that end a sequence."""

    prompt_columns: int
    ends: np.ndarray
    _prompt_end: int = -1
    _requests: frozenset[str] = frozenset()

    def is_of(self, requests: Sequence[str], columns: int) -> bool:
        """Whether a pass of these requests holds the prompt, or goes on with it: `columns` are new, from the first on.

        `generate` may run other sequences beside: classifier-free guidance has one without the prompt.
        """
        if not self._requests:
            self._requests = frozenset(requests)
        return self._requests.issuperset(requests) or columns >= self.prompt_columns

    def prompt_end(self, past: int) -> int:
        """The column after the prompt. The first pass, which finds `past` columns in the cache, settles it.

        A prompt may be given whole, or without what the cache holds of it.
        """
        if self._prompt_end < 0:
            self._prompt_end = self.prompt_columns if self.prompt_columns > past else past + self.prompt_columns
        return self._prompt_end


@dataclass(slots=True, eq=False)
class Story:
    """What passes from the first column on may go on with: the sequences that ran last in this scope."""

    latest: Sequences | None = None


@dataclass(slots=True, eq=False)
class Scope:
    """Ids that the user gave, if any, a call of `generate`, if one runs, and the story that goes on in it."""

    ids: tuple[str, ...] = ()
    generation: Generation | None = None
    story: Story | None = None


class Scopes(threading.local):
    """This thread's scopes, the innermost last."""

    def __init__(self) -> None:  # called once in each thread
        self.stack: list[Scope] = []

    @property
    def current(self) -> Scope:
        return self.stack[-1] if self.stack else Scope()

    @contextmanager
    def request(self, ids: str | Sequence[str]) -> Iterator[Story]:
        """Name the requests of the passes within."""
        story = Story()
        with self._entered(Scope(check_ids(ids), self.current.generation, story)):
            yield story

    @contextmanager
    def generate(self, generation: Generation | None) -> Iterator[Story | None]:
        """Passes within are of one call of `generate`; gives the story that ends with it, if it is its own."""
        outer = self.current
        story = outer.story or Story()
        with self._entered(Scope(outer.ids, generation, story)):
            yield None if outer.story else story

    @contextmanager
    def _entered(self, scope: Scope) -> Iterator[None]:
        self.stack.append(scope)
        try:
            yield
        finally:
            self.stack.remove(scope)


def check_ids(ids: str | Sequence[str]) -> tuple[str, ...]:
    """Request ids as a tuple. Raises SettingsError when there is none, one is empty, or one comes twice."""
    found = (ids,) if isinstance(ids, str) else tuple(ids)
    if not found or not all(isinstance(i, str) and i for i in found) or len(set(found)) != len(found):
        raise SettingsError(f"request ids {ids!r}: expected one, or several different ones, none empty")
    if any("\ud800" <= character <= "\udfff" for i in found for character in i):
        raise SettingsError(f"request ids {ids!r}: expected text that UTF-8 can hold, found half a surrogate pair")
    return found


def generation_of(model: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Generation:
    """What a call of `generate` says of its prompt and of the tokens that end an answer."""
    inputs = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    embeds = kwargs.get("inputs_embeds")
    given = [int(t.shape[1]) for t in (inputs, embeds) if t is not None and getattr(t, "ndim", 0) >= 2]
    config = kwargs.get("generation_config") or getattr(model, "generation_config", None)
    ends = kwargs.get("eos_token_id", getattr(config, "eos_token_id", None))
    ids = np.unique(np.asarray([] if ends is None else ends, np.int64))
    return Generation(max(given, default=1), ids)
