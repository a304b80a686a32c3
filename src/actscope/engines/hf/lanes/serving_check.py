"""Check how a model with recurrent states can be served: run two short sequences in every way, and compare with plain passes."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from actscope.engines.hf.lanes.lanes import Batching, Calls, Lanes
from actscope.errors import EngineError
from actscope.taps.text_model import input_device

log = logging.getLogger("actscope.engine")

_LENGTHS = (11, 6)
_STEPS = 4

#: Largest relative error of logits (in the norm of their deviations from the mean) with the state of one sequence alone.
_LIMIT = 0.01
_LIMIT_HALF = 0.2
#: Other ways may have so many times that error, or the least. Exact ways have 3e-7 to 1e-6 in float32. Jamba's prompts in chunks,
#: which forget their state between chunks, have 1.2e-4 with random weights, and other mistakes more (transformers 5.23).
_FACTOR = 10.0
_LEAST = 5e-6

_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    AssertionError,
    NotImplementedError,
)


@torch.inference_mode()
def checked_calls(model: PreTrainedModel, calls: Calls, vocabulary: int, name: str) -> Calls:
    """Return the fastest way to serve a model that gives the same logits as plain passes without a cache.

    Args:
        model: The model, in evaluation mode.
        calls: How to call it. With batching "alone", only that is tried.
        vocabulary: Number of token ids.
        name: Its name, for messages.

    Raises:
        EngineError: No way is exact.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, max(_LENGTHS) + _STEPS), generator=generator).numpy()
    half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    alone, error = _by_itself(model, calls, ids, _LIMIT_HALF if half else _LIMIT, name)
    batchings: tuple[Batching, ...] = ("joined", "alone") if calls.batching == "joined" else ("alone",)
    for batching in batchings:
        # in half precision, rounding hides what a chunk forgets
        for chunks in (False,) if half else (True, False):
            tried = replace(alone, batching=batching, chunks=chunks)
            if tried == alone or _error(model, tried, ids)[0] <= max(_LEAST, _FACTOR * error):
                _tell(name, tried)
                return tried
    return alone


def _by_itself(model: PreTrainedModel, calls: Calls, ids: np.ndarray, limit: float, name: str) -> tuple[Calls, float]:
    """Return how to run each sequence in passes of its own, and the error of that. Raises EngineError if it is too large.

    Some models only take a cache that they made themselves.
    """
    reason = ""
    for new_cache in dict.fromkeys((calls.new_cache, None)):
        tried = replace(calls, batching="alone", chunks=False, new_cache=new_cache)
        error, reason = _error(model, tried, ids)
        if error <= limit:
            return tried, error
    raise EngineError(
        f"{name} keeps a recurrent state ({type(model).__name__}), and two requests at once cannot be served exactly: {reason}. "
        "vLLM with the actscope plugin may serve it; actscope.capture(model) records it in your own code"
    )


def _tell(name: str, calls: Calls) -> None:
    together = calls.batching == "joined"
    how = "decode together" if together else "run in passes of their own, which is slower"
    prompts = "in chunks" if calls.chunks else "in one pass"
    level = logging.INFO if together else logging.WARNING
    log.log(level, "%s has recurrent states: each prompt runs by itself, %s; sequences %s", name, prompts, how)


def _error(model: PreTrainedModel, calls: Calls, ids: np.ndarray) -> tuple[float, str]:
    """Return the largest relative error of this way of serving (infinity if it fails), and a sentence that says so."""
    try:
        expected = [_plain(model, row[: n + _STEPS]) for row, n in zip(ids, _LENGTHS, strict=True)]
        worst = max(_distance(found, expected[lane][column]) for lane, column, found in _served(model, calls, ids))
    except _FAILURES as error:
        return float("inf"), f"{type(error).__name__}: {error}"
    return worst, f"logits are off by {worst:.2g} of their spread"


def _plain(model: PreTrainedModel, ids: np.ndarray) -> Tensor:
    """Return the logits of one pass without a cache, [columns, vocabulary]."""
    device = input_device(model)
    logits: Tensor = model(input_ids=torch.from_numpy(ids)[None].to(device), use_cache=False).logits[0]
    return logits


def _distance(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    deviation = (expected - expected.mean()).norm()
    value = float((found - expected).norm() / deviation)
    return value if np.isfinite(value) else float("inf")


def _served(model: PreTrainedModel, calls: Calls, ids: np.ndarray) -> Iterator[tuple[int, int, Tensor]]:
    """Serve both sequences at once, let the first leave and come back. Yields (lane, column, logits)."""
    first, second = _LENGTHS
    together = calls.batching == "joined"
    one = yield from _prefilled(model, calls, ids, 0)
    two = yield from _prefilled(model, calls, ids, 1)
    batches = [(one, [0]), (two, [1])]
    if together:
        one.extend(two)
        batches = [(one, [0, 1])]
    at = [first, second]
    for step in range(_STEPS):
        if step == 2:  # the first sequence leaves; it comes back behind the other
            if together:
                one.select([1])
                again = yield from _prefilled(model, calls, ids, 0)
                one.extend(again)
                batches = [(one, [1, 0])]
            else:
                again = yield from _prefilled(model, calls, ids, 0)
                batches = [(two, [1]), (again, [0])]
            at[0] = first
        for lanes, members in batches:
            logits = lanes.forward(model, np.array([[ids[m, at[m]]] for m in members], np.int64))[:, -1]
            for member, row in zip(members, logits, strict=True):
                yield member, at[member], row
                at[member] += 1


def _prefilled(
    model: PreTrainedModel, calls: Calls, ids: np.ndarray, lane: int
) -> Generator[tuple[int, int, Tensor], None, Lanes]:
    """Run the prompt of one lane by itself. Yields as `_served`, and returns its lanes."""
    lanes, n = Lanes([0], calls), _LENGTHS[lane]
    cuts = (0, n // 2, n) if calls.chunks else (0, n)
    for start, end in pairwise(cuts):
        logits = lanes.forward(model, np.ascontiguousarray(ids[lane : lane + 1, start:end]))[:, -1]
        yield lane, end - 1, logits[0]
    return lanes
