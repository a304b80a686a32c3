"""A compiled model is captured like any other, whichever part was compiled, and whether it ran before the capture or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.capture.harness import MemoryRecorder, model_of, plain_hooks, prompts
from torch import nn

import actscope
from actscope.errors import RecordingError

_POST = "layers.2.resid_post"
IDS = torch.tensor(prompts(8, 8))


def whole(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def whole_graph(model: Any) -> Any:
    return torch.compile(model, backend="eager", fullgraph=True)


def forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def inner(model: Any) -> Any:
    model.model = torch.compile(model.model, backend="eager")
    return model


def one_block(model: Any) -> Any:
    model.model.layers[2] = torch.compile(model.model.layers[2], backend="eager")
    return model


def each_block(model: Any) -> Any:
    for block in model.model.layers:
        block.compile(backend="eager")
    return model


def in_a_function(model: Any) -> Any:
    step = torch.compile(lambda ids: model(ids), backend="eager")
    return lambda ids: step(ids)


WAYS: tuple[Callable[[Any], Any], ...] = (
    whole, in_place, whole_graph, forward, inner, one_block, each_block, in_a_function,
)  # fmt: skip


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


def expected() -> torch.Tensor:
    model = model_of("llama")
    with plain_hooks({_POST: (model.model.layers[2], "out")}) as plain, torch.no_grad():
        model(IDS)
    return plain[_POST][0]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_model_that_was_compiled_and_run_before_the_capture(
    way: Callable[[Any], Any], recorder: MemoryRecorder
) -> None:
    model = model_of("llama")
    run = way(model)
    with torch.no_grad():
        before = run(IDS).logits
        with actscope.capture(model, sites="2", recorder=recorder, policy="error") as cap:
            assert torch.equal(run(IDS).logits, before)
        assert torch.equal(run(IDS).logits, before)
    assert recorder.requests == ["r000001", "r000002"]
    for lane, rows in enumerate(expected()):
        assert recorder.ids(recorder.requests[lane], _POST) == IDS[lane].tolist()
        assert torch.equal(recorder.rows(recorder.requests[lane], _POST), rows)
    assert (cap.stats().passes, cap.stats().unowned_rows, cap.stats().incomplete_passes) == (1, 0, 0)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_model_that_is_compiled_during_a_capture_does_not_keep_its_hooks(
    way: Callable[[Any], Any], recorder: MemoryRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of("llama")
    with torch.no_grad(), actscope.capture(model, sites="2", recorder=recorder, policy="error") as cap:
        run = way(model)
        run(IDS)
    seen = cap.stats()
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        run(IDS)
    assert recorder.requests == ["r000001", "r000002"]
    assert cap.stats() == seen
    assert not caplog.records


def test_the_users_own_stance_is_back_after_the_last_capture(recorder: MemoryRecorder) -> None:
    one, two = model_of("llama"), model_of("gpt2")
    calls: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    double = torch.compile(lambda x: x * 2, backend=backend)
    with actscope.capture(one, sites="2", recorder=recorder):
        with actscope.capture(two, sites="2", recorder=MemoryRecorder()):
            double(torch.ones(2))
        double(torch.ones(2))
        assert not calls
    double(torch.ones(2))
    assert calls
    with torch.compiler.set_stance("fail_on_recompile"):
        with actscope.capture(one, sites="2", recorder=recorder):
            pass
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            double(torch.ones(2, 2, 2))


class Skipping(nn.Module):
    """A block that, from some point on, runs without its hooks, as a replayed CUDA graph does."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.replayed = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.block.forward(*args, **kwargs) if self.replayed else self.block(*args, **kwargs)


def test_a_site_that_does_not_fire_is_counted_and_told_once(
    recorder: MemoryRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows of the other sites are delivered; a pass in which none fired is incomplete."""
    model = model_of("llama")
    model.model.layers[2] = Skipping(model.model.layers[2])
    sites = "model.layers.1,model.layers.2.block"
    with (
        caplog.at_level(logging.WARNING),
        torch.no_grad(),
        actscope.capture(model, sites=sites, recorder=recorder) as cap,
    ):
        model(IDS)
        model.model.layers[2].replayed = True
        model(IDS)
        model(IDS)
    assert cap.stats().reasons == {"a module did not run in a pass, or ran where hooks do not": 2 * 16}
    assert cap.stats().incomplete_passes == 0
    assert len([record for record in caplog.records if "where hooks do not" in record.message]) == 1
    silent = MemoryRecorder()
    with torch.no_grad(), actscope.capture(model, sites="model.layers.2.block", recorder=silent) as cap:
        model(IDS)
    assert (cap.stats().incomplete_passes, cap.stats().tokens, silent.requests) == (1, 0, [])


def test_under_policy_error_a_site_that_does_not_fire_raises(recorder: MemoryRecorder) -> None:
    model = model_of("llama")
    model.model.layers[2] = Skipping(model.model.layers[2])
    model.model.layers[2].replayed = True
    with (
        torch.no_grad(),
        actscope.capture(model, sites="model.layers.2.block", recorder=recorder, policy="error"),
        pytest.raises(RecordingError, match="replayed as a CUDA graph"),
    ):
        model(IDS)
