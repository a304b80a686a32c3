"""A capture to disk, and what a reader finds there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.capture.harness import model_of, padded, plain_hooks, prompts
from support.hf.tiny import byte_tokenizer

import actscope
from actscope.errors import RecordingError
from actscope.frames import RowFlag
from actscope.recording.writing.recorder import Recorder

_POST = "layers.2.resid_post"


@pytest.fixture
def model() -> Any:
    return model_of("llama")


@pytest.mark.parametrize("codec", ["none", "lz4", "lossless"])
def test_what_is_read_back_is_what_the_model_computed(model: Any, tmp_path: Path, codec: str) -> None:
    texts = prompts(5, 9)
    with (
        plain_hooks({_POST: (model.model.layers[2], "out")}) as plain,
        actscope.capture(model, sites="0,2", to=tmp_path / "run.acts", codec=codec, memory="64MiB"),
    ):
        out = model.generate(**padded(texts, left=True), max_new_tokens=6, do_sample=False, eos_token_id=None)
    recording = actscope.open(tmp_path / "run.acts")
    assert recording.sites == ("layers.0.resid_post", _POST)
    assert recording.requests == ["r000001", "r000002"]
    computed = torch.cat(plain[_POST], dim=1).numpy()
    for lane, text in enumerate(texts):
        rows = recording.rows(_POST, request=f"r00000{lane + 1}")
        np.testing.assert_array_equal(rows.values, computed[lane, 9 - len(text) :])
        np.testing.assert_array_equal(rows.labels["token_id"], out[lane, 9 - len(text) : -1].numpy())
        assert (rows.labels["flags"] == [int(RowFlag.PREFILL)] * len(text) + [0] * 5).all()
        summary = recording.request(f"r00000{lane + 1}")
        assert (summary.n_prompt, summary.computed, summary.ended) == (len(text), len(text) + 5, True)
    assert recording.complete


def test_tokens_have_their_text_where_a_tokenizer_is_given(model: Any, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    with actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB", tokenizer=tokenizer) as cap:
        ids = torch.tensor([tokenizer.encode("hello")])
        with cap.request("greeting"):
            out = model.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None)
            cap.record_token(int(out[0, -1]))
    recording = actscope.open(tmp_path / "a")
    assert [token.text for token in recording.tokens("greeting")][:5] == list("hello")
    (last,) = recording.recorded_tokens()
    assert (last.request, last.position, last.token_id) == ("greeting", 6, int(out[0, -1]))


def test_facts_that_are_given_of_the_model_are_the_recordings_and_it_goes_on_under_them_only(
    model: Any, tmp_path: Path
) -> None:
    facts = {"name": "tiny/llama", "revision": "abc", "max_context": 512}
    with actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB", model_facts=facts):
        pass
    told = actscope.open(tmp_path / "a").info["model"]
    assert told.items() >= facts.items() and (told["n_layers"], told["d_model"]) == (4, 64)
    with actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB", resume=True, model_facts=facts):
        pass
    other = actscope.capture(
        model, sites="2", to=tmp_path / "a", memory="64MiB", resume=True, model_facts=facts | {"revision": "abd"}
    )
    with pytest.raises(RecordingError, match="its revision are abc, now asked for abd"):
        other.start()


def test_a_failing_recording_is_reported_once_and_the_users_own_error_comes_first(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cap = actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB")
    with pytest.raises(KeyError), cap, torch.no_grad():
        assert isinstance(cap._recorder, Recorder)
        cap._recorder._messages.fail(OSError("no space left on device"))
        model(torch.tensor(prompts(4)))
        raise KeyError("the user's own")
    told = [record.getMessage() for record in caplog.records if "no space left" in record.getMessage()]
    assert told == [f"{tmp_path / 'a'}: recording has stopped: no space left on device"]
    assert cap.stats().reasons == {"the recording takes no more rows": 4}


def test_a_recording_that_goes_on_counts_on(model: Any, tmp_path: Path) -> None:
    """Counted ids do not come twice; a second capture to the same place is refused unless it resumes."""
    ids = torch.tensor(prompts(4))
    for resume in (False, True):
        cap = actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB", resume=resume)
        with cap, torch.no_grad():
            model(ids)
    with pytest.raises(RecordingError):
        actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB").start()
    with actscope.capture(model, sites="2", to=tmp_path / "b", memory="64MiB"):
        pass  # the refusal has let go of the model
    recording = actscope.open(tmp_path / "a")
    assert recording.requests == ["r000001", "r000002"]
    assert len(recording[_POST]) == 8


def test_rows_of_a_pass_that_raised_are_not_in_the_recording(model: Any, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    ids = torch.tensor(prompts(4))
    with actscope.capture(model, sites="all", to=tmp_path / "a", memory="64MiB") as cap, torch.no_grad():
        model(ids)
        handle = model.model.layers[3].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError):
            model(ids)
        handle.remove()
        model(ids)
        assert cap.checkpoint() >= 8
    recording = actscope.open(tmp_path / "a")
    assert [len(recording[site]) for site in recording.sites] == [8] * 4
    assert recording.requests == ["r000001", "r000003"]
    assert all(recording.request(request).ended for request in recording.requests)


def test_sampled_positions_are_read_back_by_position(model: Any, tmp_path: Path) -> None:
    ids = torch.tensor(prompts(10))
    with actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB", granularity="sampled:3"):
        model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    recording = actscope.open(tmp_path / "a")
    assert recording.rows(_POST, request="r000001").labels["position"].tolist() == [0, 3, 6, 9, 12]
    assert recording.request("r000001").present == 14


def test_progress_and_summary_report_what_was_captured(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "actscope.capture"),
        actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB") as cap,
        torch.no_grad(),
    ):
        model(torch.tensor(prompts(6, 6)))
        assert (cap.progress.tokens, cap.progress.rows, cap.progress.bytes) == (12, 12, 12 * 64 * 4)
    assert "12 tokens of 2 requests at 1 sites" in caplog.text
    counts = cap.stats().recorder
    assert counts is not None and counts.rows == 12


def test_a_capture_that_saw_no_pass_says_so(model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB"):
        pass
    assert "no forward pass was seen" in caplog.text


def test_drafts_of_the_last_pass_are_no_tokens_of_the_request(model: Any, tmp_path: Path) -> None:
    """Prompt lookup computes drafts that may not be accepted; the last pass leaves them in the cache."""
    pattern = prompts(9)[0] * 3
    outs, extra = {}, 0
    with actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB") as cap:
        for new in range(3, 24):
            with cap.request(f"new{new}"):
                outs[f"new{new}"] = model.generate(
                    torch.tensor([pattern]),
                    prompt_lookup_num_tokens=3,
                    max_new_tokens=new,
                    do_sample=False,
                    eos_token_id=None,
                )[0].tolist()
    recording = actscope.open(tmp_path / "a")
    for request, ids in outs.items():
        tokens = recording.tokens(request)
        assert [token.token_id for token in tokens] == ids[: len(tokens)]
        assert len(ids) - 1 <= len(tokens) <= len(ids)
        labels = recording.labels(request)
        extra += int(((labels["flags"] & RowFlag.REJECTED) > 0).sum())
    assert extra > 0, "no last pass left a draft behind: choose other prompts"
