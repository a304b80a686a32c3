"""Scopes: request ids and `generate` calls that apply to the next passes. One stack per thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from actscope.capture.labels.generate_calls import Prepared
from actscope.capture.labels.sequences import Sequences
from actscope.errors import SettingsError


@dataclass(slots=True, eq=False)
class Generation:
    """A call of `generate`: the number of prompt columns, and the token ids that end a sequence."""

    prompt_columns: int
    ends: np.ndarray
    _prompt_end: int = -1
    _requests: frozenset[str] = frozenset()

    def is_of(self, requests: Sequence[str], columns: int) -> bool:
        """Return whether a pass of these requests contains or continues the prompt.

        `generate` may also run other sequences: classifier-free guidance runs one without the prompt.

        Args:
            requests: Requests of the pass.
            columns: Columns of the pass if it is the first of its sequences, else 0.
        """
        if not self._requests:
            self._requests = frozenset(requests)
        return self._requests.issuperset(requests) or columns >= self.prompt_columns

    def prompt_end(self, past: int) -> int:
        """Return the column after the prompt. The first call fixes it, from the `past` columns in the cache.

        The caller may pass the whole prompt, or only the part that is not in the cache.
        """
        if self._prompt_end < 0:
            self._prompt_end = self.prompt_columns if self.prompt_columns > past else past + self.prompt_columns
        return self._prompt_end


@dataclass(slots=True, eq=False)
class Story:
    """The sequences that ran last in a scope. Later passes that start at the first column may continue them."""

    latest: Sequences | None = None


@dataclass(slots=True, eq=False)
class Scope:
    """Request ids given by the user, the running call of `generate`, and the scope's story; each may be absent."""

    ids: tuple[str, ...] = ()
    generation: Generation | None = None
    story: Story | None = None


class Scopes(threading.local):
    """Scopes of the current thread, innermost last."""

    def __init__(self) -> None:  # called once per thread
        self.stack: list[Scope] = []
        self.prepared: Prepared | None = None
        """What `generate` prepared for the next pass."""

    @property
    def current(self) -> Scope:
        """The innermost scope, or an empty one."""
        return self.stack[-1] if self.stack else Scope()

    @contextmanager
    def request(self, ids: str | Sequence[str]) -> Iterator[Story]:
        """Name the requests of the passes in this context. Raises SettingsError for invalid ids."""
        story = Story()
        with self._entered(Scope(check_ids(ids), self.current.generation, story)):
            yield story

    @contextmanager
    def generate(self, generation: Generation | None) -> Iterator[Story | None]:
        """Assign the passes in this context to one call of `generate`. Yields its story, or None if an outer scope owns it."""
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
    """Return request ids as a tuple. Raises SettingsError if there is none, or one is empty, repeated or not valid Unicode."""
    found = (ids,) if isinstance(ids, str) else tuple(ids)
    if not found or not all(isinstance(i, str) and i for i in found) or len(set(found)) != len(found):
        raise SettingsError(f"request ids {ids!r}: expected one, or several different ones, none empty")
    if any("\ud800" <= character <= "\udfff" for i in found for character in i):
        raise SettingsError(f"request ids {ids!r}: expected text that UTF-8 can hold, found half a surrogate pair")
    return found


def generation_of(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Generation:
    """Read the prompt length and the end-of-sequence token ids from a call of `generate`."""
    inputs = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    texts = (inputs, kwargs.get("inputs_embeds"))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):  # the others are of the encoder
        texts = (kwargs.get("decoder_input_ids"), kwargs.get("decoder_inputs_embeds"))
    given = [int(t.shape[1]) for t in texts if t is not None and getattr(t, "ndim", 0) >= 2]
    config = kwargs.get("generation_config") or getattr(model, "generation_config", None)
    ends = kwargs.get("eos_token_id", getattr(config, "eos_token_id", None))
    ids = np.unique(np.asarray([] if ends is None else ends, np.int64))
    return Generation(max(given, default=1), ids)
