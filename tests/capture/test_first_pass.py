"""A capture holds its points against the first pass: what is not what its name says gives no rows, and the log says why."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from support.capture.harness import MemoryRecorder
from support.taps.models import random_model

import actscope
from actscope.capture.hooks import first_pass
from actscope.errors import RecordingError
from actscope.taps import anatomy
from actscope.taps.text_model import blocks

_IDS = torch.arange(3, 15)[None]
_SITES = "0.attn_out,1.mlp_out,1"


@pytest.fixture
def norms_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody knew that a norm follows Gemma 2's modules."""
    monkeypatch.setattr(anatomy, "_NORMS_BEHIND", {"attn_out": (), "mlp_out": ()})


def test_a_right_model_is_recorded_from_its_first_pass_on_and_no_hook_of_the_check_stays() -> None:
    model: Any = random_model("gemma2")
    recorder = MemoryRecorder()
    with actscope.capture(model, sites=_SITES, recorder=recorder) as cap, torch.no_grad():
        model(input_ids=_IDS)
        watched = blocks(model)[0].get_submodule("mlp.gate_proj")
        assert not watched._forward_hooks
        model(input_ids=_IDS)
    assert [len(recorder.rows(request, site)) for request in ("r000001", "r000002") for site in cap.sites] == [12] * 6
    assert (cap.stats().unowned_rows, cap.stats().faults) == (0, 0)


@pytest.mark.usefixtures("norms_forgotten")
def test_a_point_that_is_not_what_its_name_says_gives_no_rows_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model: Any = random_model("gemma2")
    recorder = MemoryRecorder()
    with actscope.capture(model, sites=_SITES, recorder=recorder) as cap, torch.no_grad():
        model(input_ids=_IDS)
        model(input_ids=_IDS)
    for request in ("r000001", "r000002"):
        assert [site for site in cap.sites if (request, site) in recorder.computed] == ["layers.1.resid_post"]
    refused = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [text.partition(" is refused")[0] for text in refused] == ["layers.0.attn_out", "layers.1.mlp_out"]
    assert "what the block adds is 1 x post_attention_layernorm; name that module by its path" in refused[0]
    reason = "a point is not what its name says in this model"
    assert cap.stats().reasons == {reason: 2 * 2 * 12}
    assert (cap.stats().rows, cap.stats().incomplete_passes, cap.stats().faults) == (2 * 12, 0, 0)


@pytest.mark.usefixtures("norms_forgotten")
def test_a_pass_with_too_many_rows_to_hold_back_is_not_delivered_if_a_point_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first_pass, "_MOST_HELD_BYTES", 12 * 32 * 4 - 1)
    model: Any = random_model("gemma2")
    recorder = MemoryRecorder()
    with actscope.capture(model, sites=_SITES, recorder=recorder) as cap, torch.no_grad():
        model(input_ids=_IDS)
        model(input_ids=_IDS)
    assert list(recorder.computed) == [("r000002", "layers.1.resid_post")]
    reason = "a point is not what its name says in this model"
    assert cap.stats().reasons == {reason: 3 * 12 + 2 * 12}
    assert (cap.stats().passes, cap.stats().incomplete_passes, cap.stats().faults) == (2, 1, 0)


@pytest.mark.usefixtures("norms_forgotten")
def test_with_policy_error_a_wrong_point_raises() -> None:
    model: Any = random_model("gemma2")
    with (
        actscope.capture(model, sites=_SITES, recorder=MemoryRecorder(), policy="error"),
        torch.no_grad(),
        pytest.raises(
            RecordingError, match=r"layers\.0\.attn_out is refused, because what the block adds is 1 x post_"
        ),
    ):
        model(input_ids=_IDS)


def test_the_check_sees_a_generations_prompt_and_changes_no_token() -> None:
    model: Any = random_model("llama")
    plain = model.generate(_IDS, max_new_tokens=5, do_sample=False)
    recorder = MemoryRecorder()
    with actscope.capture(model, sites=_SITES, recorder=recorder) as cap:
        assert torch.equal(model.generate(_IDS, max_new_tokens=5, do_sample=False), plain)
    assert [len(recorder.rows("r000001", site)) for site in cap.sites] == [16] * 3


def test_a_pass_that_fails_shows_nothing_and_the_next_is_checked() -> None:
    model: Any = random_model("llama")
    recorder = MemoryRecorder()
    stop = blocks(model)[1].get_submodule("mlp").register_forward_pre_hook(_fail)
    with actscope.capture(model, sites=_SITES, recorder=recorder) as cap, torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            model(input_ids=_IDS)
        stop.remove()
        model(input_ids=_IDS)
    assert cap.stats().faults == 0
    assert [step.n_rows for step in recorder.steps if step.n_rows] == [12]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.usefixtures("norms_forgotten")
def test_a_block_that_is_skipped_at_first_is_checked_when_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    """Mllama skips its cross-attention blocks in passes over text alone."""
    model: Any = random_model("gemma2")
    layers = model.model.layers
    skipped = torch.nn.Identity()
    recorder = MemoryRecorder()
    with actscope.capture(model, sites="0,1.mlp_out", recorder=recorder), torch.no_grad():
        layers._modules["1"], block = skipped, layers._modules["1"]
        skipped.forward = lambda hidden, **how: hidden  # type: ignore[method-assign]
        model(input_ids=_IDS)
        layers._modules["1"] = block
        model(input_ids=_IDS)
    refused = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(refused) == 1 and refused[0].startswith("layers.1.mlp_out is refused and gives no rows, because what")
    assert sorted(recorder.computed) == [("r000001", "layers.0.resid_post"), ("r000002", "layers.0.resid_post")]


@pytest.mark.usefixtures("norms_forgotten")
@pytest.mark.parametrize("patience", [60.0, 0.05])
def test_a_pass_of_another_thread_delivers_nothing_before_the_first_is_judged(
    patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the judgement; if that does not come, its rows are counted as unchecked."""
    monkeypatch.setattr(first_pass, "_MOST_WAIT_S", patience)
    model: Any = random_model("gemma2")
    first_is_inside, second_ended = threading.Event(), threading.Event()

    def stay(*_: object) -> None:
        if threading.current_thread().name == "first":
            first_is_inside.set()
            second_ended.wait(1.0 if patience > 1 else 60.0)

    def run() -> None:
        with torch.no_grad():
            model(input_ids=_IDS)

    blocks(model)[1].get_submodule("mlp").register_forward_pre_hook(stay)
    recorder = MemoryRecorder()
    with actscope.capture(model, sites=_SITES, recorder=recorder) as cap:
        first = threading.Thread(target=run, name="first")
        first.start()
        assert first_is_inside.wait(60)
        run()
        second_ended.set()
        first.join()
    delivered = {request: site for request, site in recorder.computed}
    alone = {"r000001": "layers.1.resid_post"}
    assert delivered == (alone if patience < 1 else alone | {"r000002": "layers.1.resid_post"})
    unchecked = sum(n for reason, n in cap.stats().reasons.items() if reason.startswith("the first pass, which shows"))
    assert (unchecked, cap.stats().faults) == (3 * 12 if patience < 1 else 0, 0)


def _fail(*_: object) -> None:
    raise ZeroDivisionError
