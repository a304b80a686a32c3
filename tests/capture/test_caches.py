"""Rows have their request and position whatever keeps the context: every kind of cache, recurrent states, both.

The right row of a position is that of one pass over the whole text without a cache.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from support.capture.harness import MemoryRecorder, model_of, padded, plain_hooks, prompts
from support.hf.recurrent import RECURRENT, STATE_SPACE, recurrent
from transformers import DynamicCache, StaticCache

import actscope
from actscope.errors import RecordingError
from actscope.frames import RowFlag

_POST = "layers.2.resid_post"


def block_of(model: Any) -> Any:
    """The block at layer 2, by its name in each architecture."""
    body = getattr(model, "model", None) or getattr(model, "backbone", None) or model.rwkv
    return (getattr(body, "layers", None) or body.blocks)[2]


def whole_pass(model: Any, text: list[int]) -> torch.Tensor:
    """[n, d]: what comes out of layer 2 in one pass over a text, without a cache."""
    with plain_hooks({"row": (block_of(model), "out")}) as plain, torch.no_grad():
        model(torch.tensor([text]), use_cache=False)
    return plain["row"][0][0]


def check(model: Any, recorder: MemoryRecorder, request: str, text: list[int], n_prompt: int) -> None:
    assert recorder.ids(request, _POST) == text
    torch.testing.assert_close(recorder.rows(request, _POST), whole_pass(model, text), rtol=1e-4, atol=1e-4)
    flags = [bool(flag & RowFlag.PREFILL) for flag in recorder.flags(request, _POST)]
    assert flags == [True] * n_prompt + [False] * (len(text) - n_prompt)


@pytest.mark.parametrize("kind", RECURRENT)
def test_generating_with_a_recurrent_state(kind: str) -> None:
    model, recorder = recurrent(kind), MemoryRecorder()
    ids = torch.tensor(prompts(9))
    ask: dict[str, Any] = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    bare = model.generate(ids, **ask)
    with actscope.capture(model, sites="2", recorder=recorder, policy="error") as cap:
        out = model.generate(ids, **ask)
    assert torch.equal(out, bare)
    assert recorder.requests == ["r000001"]
    check(model, recorder, "r000001", out[0, :-1].tolist(), 9)
    assert cap.stats().unowned_rows == cap.stats().faults == 0
    assert recorder.ended == ["r000001"]


#: They take no notice of a mask: padding on the left is part of what they read.
_UNMASKED = ("rwkv", "xlstm", "minimax", "recurrent_gemma")
#: RWKV decodes one sequence at a time: with more, its rows are [lanes, lanes, d] (transformers 5.23), and are refused.
_ONE_LANE = ("rwkv",)


@pytest.mark.parametrize("kind", [kind for kind in RECURRENT if kind not in _UNMASKED])
def test_generating_with_a_recurrent_state_from_left_padded_prompts(kind: str) -> None:
    model, recorder = recurrent(kind), MemoryRecorder()
    texts = prompts(3, 11, 6)
    with actscope.capture(model, sites="2", recorder=recorder, policy="error") as cap:
        out = model.generate(**padded(texts, left=True), max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert recorder.requests == ["r000001", "r000002", "r000003"]
    for lane, text in enumerate(texts):
        check(model, recorder, recorder.requests[lane], out[lane, 11 - len(text) : -1].tolist(), len(text))
    assert cap.stats().tokens == sum(map(len, texts)) + 3 * 4
    assert cap.stats().unowned_rows == 0


@pytest.mark.parametrize("kind", _UNMASKED)
def test_padding_that_a_model_reads_as_text_still_has_no_row(kind: str) -> None:
    model, recorder = recurrent(kind), MemoryRecorder()
    texts, width = prompts(3, 11)[: 1 if kind in _ONE_LANE else 2], 11
    batch = padded([*texts, [0] * width], left=True)
    batch = {name: value[: len(texts)] for name, value in batch.items()}
    with (
        plain_hooks({_POST: (block_of(model), "out")}) as plain,
        actscope.capture(model, sites="2", recorder=recorder, policy="error"),
    ):
        out = model.generate(**batch, max_new_tokens=5, do_sample=False, eos_token_id=None)
    computed = torch.cat(plain[_POST], dim=1)
    for lane, text in enumerate(texts):
        request = recorder.requests[lane]
        assert recorder.ids(request, _POST) == out[lane, 11 - len(text) : -1].tolist()
        torch.testing.assert_close(recorder.rows(request, _POST), computed[lane, 11 - len(text) :], rtol=0, atol=0)


def run_by_hand(model: Any, parts: list[torch.Tensor], name: str) -> None:
    """Pass the parts of a text one by one, each with the state that the one before gave back."""
    state: dict[str, Any] = {}
    with torch.no_grad():
        for part in parts:
            out = model(part, use_cache=True, **state)
            state = {name: getattr(out, name)}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_text_in_parts_over_a_recurrent_state(kind: str) -> None:
    """What was computed is recorded as it was, whether or not the model itself takes up its state exactly."""
    model, recorder = recurrent(kind), MemoryRecorder()
    name = {"rwkv": "state"}.get(kind, "cache_params" if kind in STATE_SPACE else "past_key_values")
    ids = torch.tensor(prompts(12, 12)[: 1 if kind in _ONE_LANE else 2])
    with (
        plain_hooks({_POST: (block_of(model), "out")}) as plain,
        actscope.capture(model, sites="2", recorder=recorder, policy="error"),
    ):
        if kind == "recurrent_gemma":  # gives no cache back
            cache = DynamicCache(config=model.config)
            with torch.no_grad():
                for part in torch.split(ids, [5, 4, 1, 1, 1], dim=1):
                    model(part, use_cache=True, past_key_values=cache)
        else:
            run_by_hand(model, list(torch.split(ids, [5, 4, 1, 1, 1], dim=1)), name)
    assert len(recorder.requests) == len(ids)
    computed = torch.cat(plain[_POST], dim=1)
    for lane, request in enumerate(recorder.requests):
        assert recorder.ids(request, _POST) == ids[lane].tolist()
        assert torch.equal(recorder.rows(request, _POST), computed[lane])


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", STATE_SPACE)
def test_a_state_that_went_on_unseen_is_refused(kind: str, inference: bool) -> None:
    """It does not tell how many tokens it holds: neither before the capture, nor through `forward`, which runs no hooks."""
    model, recorder = recurrent(kind), MemoryRecorder()
    name = "state" if kind == "rwkv" else "cache_params"
    ids = torch.tensor(prompts(6))
    with torch.inference_mode(inference), torch.no_grad():
        before = getattr(model(ids, use_cache=True), name)
        with actscope.capture(model, sites="2", recorder=recorder) as cap:
            model(torch.tensor([[5]]), use_cache=True, **{name: before})
            assert recorder.requests == []
            state = getattr(model(ids, use_cache=True), name)
            (model.rwkv if kind == "rwkv" else model.backbone).forward(
                torch.tensor([[6]]), use_cache=True, **{name: state}
            )
            model(torch.tensor([[7]]), use_cache=True, **{name: state})
    assert [recorder.ids(request, _POST) for request in recorder.requests] == ids.tolist()
    assert set(cap.stats().reasons) == {
        "a recurrent state holds passes that were not captured, and does not tell how many",
        "a module ran outside the model's own forward pass",
        "the cache has grown by passes that were not captured",
    }


def test_a_state_that_is_reset_begins_a_request() -> None:
    model, recorder = recurrent("mamba"), MemoryRecorder()
    ids, cache = torch.tensor(prompts(6, 6)), DynamicCache(config=model.config)
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"), torch.no_grad():
        for lane in range(2):
            model(ids[lane : lane + 1], cache_params=cache, use_cache=True)
            cache.reset()  # type: ignore[no-untyped-call]
    assert [recorder.ids(request, _POST) for request in recorder.requests] == ids.tolist()


def test_lanes_of_a_recurrent_state_that_are_selected_keep_their_requests() -> None:
    model, recorder = recurrent("mamba"), MemoryRecorder()
    ids = torch.tensor(prompts(6, 6, 6))
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"), torch.no_grad():
        cache = model(ids, use_cache=True).cache_params
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        model(torch.tensor([[7], [8], [9]]), cache_params=cache, use_cache=True)
    assert recorder.ids("r000003", _POST) == [*ids[2].tolist(), 7]
    assert recorder.ids("r000001", _POST) == [*ids[0].tolist(), 8]


@pytest.mark.parametrize("kind", ["mamba", "lfm2", "falcon_h1", "qwen3_next"])
def test_generating_with_a_recurrent_state_beside_a_static_cache(kind: str) -> None:
    model, recorder = recurrent(kind), MemoryRecorder()
    texts = prompts(3, 9)
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"):
        out = model.generate(
            **padded(texts, left=True),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
            cache_implementation="static",
        )
    for lane, text in enumerate(texts):
        check(model, recorder, recorder.requests[lane], out[lane, 9 - len(text) : -1].tolist(), len(text))


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_beam_search_over_a_recurrent_state_is_not_delivered_once_it_copies_sequences(kind: str) -> None:
    model, recorder = recurrent(kind), MemoryRecorder()
    ids = torch.tensor(prompts(9))
    with actscope.capture(model, sites="2", recorder=recorder) as cap:
        model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=None)
    assert list(cap.stats().reasons) == ["sequences of the cache were copied or reordered, as beam search does"]
    assert all(recorder.ids(request, _POST)[:9] == ids[0].tolist() for request in recorder.requests)


def test_drafts_over_a_state_that_can_be_cropped_leave_the_accepted_tokens() -> None:
    """LFM2 keeps the last columns alone; what the next pass computes again is what is read."""
    model, recorder = recurrent("lfm2"), MemoryRecorder()
    ids = torch.tensor([[7, 8, 9, 7, 8, 9, 7, 8, 9, 7]])
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"):
        out = model.generate(ids, max_new_tokens=12, prompt_lookup_num_tokens=3, do_sample=False, eos_token_id=None)
    text, newest = out[0, :-1].tolist(), recorder.newest("r000001", _POST)
    assert [newest[position][0] for position in range(len(text))] == text
    rows = torch.stack([newest[position][2] for position in range(len(text))])
    torch.testing.assert_close(rows, whole_pass(model, text), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "lfm2", "jamba"])
def test_a_second_turn_over_a_state_goes_on_with_the_request(kind: str) -> None:
    model, recorder = recurrent(kind), MemoryRecorder()
    name = {"rwkv": "state", "mamba": "cache_params"}.get(kind, "past_key_values")
    first, second = torch.tensor(prompts(7)), torch.tensor(prompts(4, seed=1))
    with (
        plain_hooks({_POST: (block_of(model), "out")}) as plain,
        actscope.capture(model, sites="2", recorder=recorder, policy="error"),
        torch.no_grad(),
    ):
        out = model(first, use_cache=True)
        out = model(second, use_cache=True, **{name: getattr(out, name)})
        model(torch.tensor([[3]]), use_cache=True, **{name: getattr(out, name)})
    assert recorder.requests == ["r000001"]
    assert recorder.ids("r000001", _POST) == [*first[0].tolist(), *second[0].tolist(), 3]
    assert torch.equal(recorder.rows("r000001", _POST), torch.cat(plain[_POST], dim=1)[0])


# --- key-value caches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("implementation", ["dynamic", "static", "offloaded", "offloaded_static"])
def test_generating_with_each_implementation_of_a_cache(architecture: str, implementation: str) -> None:
    if implementation.startswith("offloaded") and not torch.cuda.is_available():
        pytest.skip("transformers offloads caches from a GPU")
    model, recorder = model_of(architecture), MemoryRecorder()
    texts = prompts(5, 20, 9)
    ask: dict[str, Any] = dict(
        max_new_tokens=6, do_sample=False, eos_token_id=None, cache_implementation=implementation
    )
    bare = model.generate(**padded(texts, left=True), **ask)
    with actscope.capture(model, sites="2", recorder=recorder, policy="error") as cap:
        out = model.generate(**padded(texts, left=True), **ask)
    assert torch.equal(out, bare)
    assert recorder.requests == ["r000001", "r000002", "r000003"]
    for lane, text in enumerate(texts):
        check(model, recorder, recorder.requests[lane], out[lane, 20 - len(text) : -1].tolist(), len(text))
    assert cap.stats().unowned_rows == 0


def test_generating_with_a_quantized_cache(recorder: MemoryRecorder) -> None:
    pytest.importorskip("optimum.quanto")
    model, ids = model_of("llama"), torch.tensor(prompts(9))
    quantized: dict[str, Any] = {"backend": "quanto", "residual_length": 4, "q_group_size": 16}
    with (
        plain_hooks({_POST: (block_of(model), "out")}) as plain,
        actscope.capture(model, sites="2", recorder=recorder, policy="error"),
    ):
        out = model.generate(
            ids, max_new_tokens=8, do_sample=False, eos_token_id=None, cache_implementation="quantized",
            cache_config=quantized,
        )  # fmt: skip
    assert recorder.ids("r000001", _POST) == out[0, :-1].tolist()
    assert torch.equal(recorder.rows("r000001", _POST), torch.cat(plain[_POST], dim=1)[0])


def test_generating_with_a_prefill_in_chunks_over_a_static_cache() -> None:
    model, recorder = model_of("llama"), MemoryRecorder()
    ids = torch.tensor(prompts(20))
    ask: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, cache_implementation="static")
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"):
        out = model.generate(ids, prefill_chunk_size=8, **ask)
    assert recorder.requests == ["r000001"]
    check(model, recorder, "r000001", out[0, :-1].tolist(), 20)


def caches(model: Any) -> dict[str, Any]:
    return {
        "dynamic": DynamicCache(),
        "dynamic, with windows": DynamicCache(config=model.config),
        "static": StaticCache(config=model.config, max_cache_len=64),
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["dynamic", "dynamic, with windows", "static"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_text_in_parts_over_a_cache_of_the_users_own(architecture: str, kind: str, masked: bool) -> None:
    model, recorder = model_of(architecture), MemoryRecorder()
    ids, cache = torch.tensor(prompts(24, 24)), caches(model)[kind]
    done = 0
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"), torch.no_grad():
        for part in torch.split(ids, [9, 9, 4, 1, 1], dim=1):
            done += part.shape[1]
            mask = {"attention_mask": torch.ones(2, done, dtype=torch.long)} if masked else {}
            model(part, past_key_values=cache, use_cache=True, **mask)
    assert recorder.requests == ["r000001", "r000002"]
    for lane, request in enumerate(recorder.requests):
        assert recorder.ids(request, _POST) == ids[lane].tolist()
        torch.testing.assert_close(
            recorder.rows(request, _POST), whole_pass(model, ids[lane].tolist()), rtol=1e-4, atol=1e-4
        )


def test_a_mask_of_a_static_cache_may_cover_columns_that_have_not_run(recorder: MemoryRecorder) -> None:
    model = model_of("llama")
    text, cache = prompts(10)[0], StaticCache(config=model.config, max_cache_len=32)
    mask = torch.zeros(1, 32, dtype=torch.long)
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"), torch.no_grad():
        for start, end in [(0, 8), (8, 9), (9, 10)]:
            mask[:, start:end] = 1
            model(torch.tensor([text[start:end]]), attention_mask=mask, past_key_values=cache)
    assert recorder.ids("r000001", _POST) == text


def test_a_static_cache_that_is_reset_begins_a_request(recorder: MemoryRecorder) -> None:
    model, ids = model_of("llama"), torch.tensor(prompts(6, 6))
    cache = StaticCache(config=model.config, max_cache_len=32)
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"), torch.no_grad():
        for lane in range(2):
            model(ids[lane : lane + 1], past_key_values=cache)
            cache.reset()  # type: ignore[no-untyped-call]
    assert [recorder.ids(request, _POST) for request in recorder.requests] == ids.tolist()


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


def test_a_second_turn_of_generate_over_a_static_cache(recorder: MemoryRecorder) -> None:
    model, ids = model_of("llama"), torch.tensor(prompts(6))
    cache = StaticCache(config=model.config, max_cache_len=64)
    ask: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, past_key_values=cache)
    with actscope.capture(model, sites="2", recorder=recorder, policy="error"):
        first = model.generate(ids, **ask)
        turn = torch.cat([first, torch.tensor(prompts(3, seed=1))], dim=1)
        out = model.generate(turn, attention_mask=torch.ones_like(turn), **ask)
    assert recorder.requests == ["r000001"]
    assert recorder.ids("r000001", _POST) == out[0, :-1].tolist()
    torch.testing.assert_close(
        recorder.rows("r000001", _POST), whole_pass(model, out[0, :-1].tolist()), rtol=1e-4, atol=1e-4
    )


class Opaque:
    """A cache of a stranger's that answers 0 whatever it holds."""

    def __init__(self, cache: DynamicCache) -> None:
        self._cache = cache
        self.is_compileable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return self._cache.update(*args, **kwargs)

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> Any:
        return self._cache.get_mask_sizes(*args, **kwargs)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._cache.get_query_offset(layer_idx)


def test_a_cache_that_always_answers_zero_is_refused_once_it_has_run(
    recorder: MemoryRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    model, cache = model_of("llama"), Opaque(DynamicCache())
    with (
        caplog.at_level(logging.WARNING),
        actscope.capture(model, sites="2", recorder=recorder) as cap,
        torch.no_grad(),
    ):
        for part in ([1, 2, 3], [4], [5]):
            model(torch.tensor([part]), past_key_values=cache)
    assert recorder.ids("r000001", _POST) == [1, 2, 3]
    assert cap.stats().reasons == {"past_key_values is no cache that tells its length": 2}
    assert len([record for record in caplog.records if "tells its length" in record.message]) == 1


def test_under_policy_error_a_pass_without_certain_labels_raises(recorder: MemoryRecorder) -> None:
    model = model_of("llama")
    with (
        actscope.capture(model, sites="2", recorder=recorder, policy="error"),
        pytest.raises(RecordingError, match=r"not \[batch, columns\].*2-D mask of the tokenizer"),
        torch.no_grad(),
    ):
        model(torch.tensor(prompts(4)), attention_mask=torch.zeros(1, 1, 4, 4))
    with (
        actscope.capture(model, sites="2", recorder=MemoryRecorder(), policy="error"),
        pytest.raises(RecordingError, match="num_beams=1"),
    ):
        model.generate(torch.tensor(prompts(5)), max_new_tokens=8, num_beams=3, do_sample=False, eos_token_id=None)
