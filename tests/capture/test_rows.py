"""Rows of a capture are, bit for bit, what plain hooks see; and each knows its request, position and token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.capture.harness import MODELS, MemoryRecorder, model_of, padded, plain_hooks, prompts

import actscope
from actscope.frames import RowFlag
from actscope.sites import OUTER, POINTS

_POST = "layers.2.resid_post"


def points_of(model: Any, architecture: str) -> dict[str, tuple[Any, str]]:
    """Every point of layer 1, and the outer ones, as a person would find them in the architecture's own names."""
    if architecture == "gpt2":
        body, layers = model.transformer, model.transformer.h
        first, norm, attention, mlp = layers[0], body.ln_f, layers[1].attn, layers[1].mlp
    elif architecture == "bert":
        layers = model.bert.encoder.layer
        first, norm = layers[0], layers[3].output.LayerNorm
        attention, mlp = layers[1].attention.output.dense, layers[1].output.dense
    else:
        layers = model.model.layers
        first, norm, attention, mlp = layers[0], model.model.norm, layers[1].self_attn, layers[1].mlp
        if architecture == "gemma2":  # a norm follows each before it is added
            attention, mlp = layers[1].post_attention_layernorm, layers[1].post_feedforward_layernorm
    return {
        "embed": (first, "in"),
        "layers.1.resid_pre": (layers[1], "in"),
        "layers.1.attn_out": (attention, "out"),
        "layers.1.mlp_out": (mlp, "out"),
        "layers.1.resid_post": (layers[1], "out"),
        "final_norm": (norm, "out"),
    }


@pytest.mark.parametrize("architecture", MODELS)
def test_every_point_equals_a_plain_hook(architecture: str) -> None:
    model, recorder = model_of(architecture), MemoryRecorder()
    texts = prompts(5, 9, 7)
    with (
        plain_hooks(points_of(model, architecture)) as plain,
        actscope.capture(model, sites="embed,1,final_norm", points=POINTS, recorder=recorder) as cap,
        torch.no_grad(),
    ):
        model(**padded(texts, left=False))
    assert set(cap.sites) == {*OUTER, *(f"layers.1.{point}" for point in POINTS if point != "mixer_out")} == set(plain)
    for site in cap.sites:
        for lane, text in enumerate(texts):
            request = f"r00000{lane + 1}"
            assert torch.equal(recorder.rows(request, site), plain[site][0][lane, : len(text)])
            assert recorder.ids(request, site) == text
            assert set(recorder.flags(request, site)) == {RowFlag.PREFILL}
    assert cap.stats().unowned_rows == cap.stats().faults == cap.stats().incomplete_passes == 0
    assert cap.stats().passes == 1


@pytest.mark.parametrize("architecture", MODELS[:-1])
def test_generating_from_left_padded_prompts(architecture: str) -> None:
    """Each lane of the batch is its own request; prompt and answer are told apart; padding has no row."""
    model, recorder = model_of(architecture), MemoryRecorder()
    texts = prompts(3, 11, 6)
    with (
        plain_hooks(points_of(model, architecture)) as plain,
        actscope.capture(model, sites="1", recorder=recorder) as cap,
    ):
        out = model.generate(**padded(texts, left=True), max_new_tokens=7, do_sample=False, eos_token_id=None)
    computed = torch.cat(plain["layers.1.resid_post"], dim=1)
    for lane, text in enumerate(texts):
        request, padding = f"r00000{lane + 1}", 11 - len(text)
        assert torch.equal(recorder.rows(request, "layers.1.resid_post"), computed[lane, padding:])
        assert recorder.ids(request, "layers.1.resid_post") == out[lane, padding:-1].tolist()
        flags = recorder.flags(request, "layers.1.resid_post")
        assert flags == [RowFlag.PREFILL] * len(text) + [RowFlag(0)] * 6
    assert cap.stats().tokens == sum(map(len, texts)) + 3 * 6
    assert cap.stats().passes == 7
    assert sorted(recorder.ended) == recorder.requests
    first = recorder.steps[0].spans
    assert [span.n_prompt for span in first] == [3, 11, 6]


def test_sampling_several_answers_to_one_prompt() -> None:
    model, recorder = model_of("llama"), MemoryRecorder()
    texts = prompts(4, 6)
    torch.manual_seed(0)
    with actscope.capture(model, sites="2", recorder=recorder) as cap, cap.request(["a", "b"]):
        out = model.generate(
            **padded(texts, left=True), max_new_tokens=5, do_sample=True, num_return_sequences=3, eos_token_id=None
        )
    assert recorder.requests == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
    for lane, request in enumerate(recorder.requests):
        padding = 6 - len(texts[lane // 3])
        assert recorder.ids(request, _POST) == out[lane, padding:-1].tolist()


@pytest.fixture
def uneven() -> tuple[Any, dict[str, torch.Tensor], int]:
    """A model, a batch of prompts of 5 and 8 tokens, and the token that ends the first answer early, the other not."""
    model, batch = model_of("llama"), padded(prompts(5, 8), left=True)
    free = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None)
    end = int(free[0, 10])  # what lane 0 says third
    assert end not in free[1, 8:-1].tolist()
    return model, batch, end


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_is_fed_after_the_end_of_an_answer_is_not_recorded(
    uneven: tuple[Any, dict[str, torch.Tensor], int], use_cache: bool
) -> None:
    """A sequence that has ended is still computed with its batch; those rows are neither delivered nor counted as lost."""
    model, batch, end = uneven
    recorder = MemoryRecorder()
    with (
        plain_hooks({_POST: (model.model.layers[2], "out")}) as plain,
        actscope.capture(model, sites="2", recorder=recorder) as cap,
    ):
        out = model.generate(
            **batch, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=7, use_cache=use_cache
        )
    first = out[0, 8:].tolist().index(end)
    flags = recorder.flags("r000001", _POST)
    assert len(flags) == 5 + first and RowFlag.AFTER_EOS not in flags
    assert len(recorder.flags("r000002", _POST)) == 8 + 7
    if use_cache:
        computed = torch.cat(plain[_POST], dim=1)
        torch.testing.assert_close(recorder.rows("r000001", _POST), computed[0, 3 : 8 + first], rtol=0, atol=0)
        torch.testing.assert_close(recorder.rows("r000002", _POST), computed[1], rtol=0, atol=0)
        assert cap.stats().after_end_tokens == 7 - first
    stats = cap.stats()
    assert (stats.unowned_rows, stats.left_out_tokens, stats.faults) == (0, 0, 0)


def test_a_token_recorded_by_hand_comes_right_after_the_answer_not_after_what_was_fed_behind_it(
    uneven: tuple[Any, dict[str, torch.Tensor], int],
) -> None:
    model, batch, end = uneven
    recorder = MemoryRecorder()
    with actscope.capture(model, sites="2", recorder=recorder) as cap, cap.request(["a", "b"]):
        out = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=7)
        cap.record_token(end, request="a")
        cap.record_token(int(out[1, -1]), request="b")
    first = out[0, 8:].tolist().index(end)
    assert [token[:3] for token in recorder.tokens] == [("a", 5 + first, end), ("b", 8 + 7, int(out[1, -1]))]


def test_text_that_is_given_after_the_end_is_recorded_again(
    uneven: tuple[Any, dict[str, torch.Tensor], int],
) -> None:
    """In a second turn over the same cache, the request of the sequence that had ended goes on."""
    model, batch, end = uneven
    recorder = MemoryRecorder()
    options = {"do_sample": False, "pad_token_id": 7, "return_dict_in_generate": True}
    with actscope.capture(model, sites="2", recorder=recorder) as cap:
        told = model.generate(**batch, max_new_tokens=8, eos_token_id=end, **options)
        after_first = len(recorder.flags("r000001", _POST))
        turn = torch.cat([told.sequences, torch.tensor([[1, 2, 3], [4, 5, 6]])], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 11, dtype=torch.long)], dim=1)
        model.generate(
            input_ids=turn, attention_mask=mask, past_key_values=told.past_key_values, max_new_tokens=3,
            eos_token_id=None, **options,
        )  # fmt: skip
    flags = recorder.flags("r000001", _POST)
    assert flags[after_first:] == [RowFlag.PREFILL] * 4 + [RowFlag(0)] * 2
    assert recorder.ids("r000001", _POST)[-5:-2] == [1, 2, 3]
    assert cap.stats().unowned_rows == 0


def test_where_positions_are_left_out_a_request_still_reaches_to_its_end_and_no_further(
    uneven: tuple[Any, dict[str, torch.Tensor], int], tmp_path: Path
) -> None:
    model, batch, end = uneven
    sampled: dict[str, Any] = {"granularity": "sampled:4", "memory": "64MiB"}
    with actscope.capture(model, sites="2", to=tmp_path / "r", **sampled) as cap, cap.request(["a", "b"]):
        out = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=7)
    first = out[0, 8:].tolist().index(end)
    recording = actscope.open(tmp_path / "r")
    assert [recording.request(name).present for name in ("a", "b")] == [5 + first, 8 + 7]
    assert [recording.request(name).computed for name in ("a", "b")] == [-(-(5 + first) // 4), 4]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_a_prompt_in_chunks_over_a_cache_and_then_one_by_one(architecture: str) -> None:
    """A hand-written loop; chunks are given text, single tokens are generated."""
    model, recorder = model_of(architecture), MemoryRecorder()
    ids = torch.tensor(prompts(24, 24))
    cache, seen = None, []
    with (
        plain_hooks(points_of(model, architecture)) as plain,
        actscope.capture(model, sites="1", recorder=recorder) as cap,
        torch.inference_mode(),
    ):
        for a, b in [(0, 9), (9, 20), (20, 21), (21, 22), (22, 24)]:
            cache = model(ids[:, a:b], past_key_values=cache, use_cache=True).past_key_values
            seen.append((a, b))
    computed = torch.cat(plain["layers.1.resid_post"], dim=1)
    for lane in range(2):
        request = f"r00000{lane + 1}"
        assert torch.equal(recorder.rows(request, "layers.1.resid_post"), computed[lane])
        assert recorder.ids(request, "layers.1.resid_post") == ids[lane].tolist()
        flags = recorder.flags(request, "layers.1.resid_post")
        assert [p for p, flag in enumerate(flags) if not flag & RowFlag.PREFILL] == [20, 21]
    assert cap.stats().unowned_rows == 0


def test_padding_between_the_passes_of_a_loop() -> None:
    """Right-padded prompts and then tokens: positions count the real tokens before."""
    model, recorder = model_of("llama"), MemoryRecorder()
    texts = prompts(3, 6)
    batch = padded(texts, left=False)
    with actscope.capture(model, sites="2", recorder=recorder), torch.no_grad():
        out = model(**batch, use_cache=True)
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
        positions = mask.sum(1, keepdim=True) - 1
        model(
            torch.tensor([[9], [8]]),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=out.past_key_values,
        )
    assert recorder.ids("r000001", _POST) == [*texts[0], 9]
    assert recorder.ids("r000002", _POST) == [*texts[1], 8]


def test_a_cache_that_was_filled_before_begins_a_request_where_it_ends() -> None:
    model, recorder = model_of("llama"), MemoryRecorder()
    ids = torch.tensor(prompts(10))
    with torch.no_grad():
        cache = model(ids[:, :6], use_cache=True).past_key_values
        with actscope.capture(model, sites="2", recorder=recorder):
            model(ids[:, 6:], past_key_values=cache)
    assert sorted(recorder.newest("r000001", _POST)) == [6, 7, 8, 9]
    assert recorder.ids("r000001", _POST) == ids[0, 6:].tolist()


def test_every_pass_without_a_cache_is_its_own_request() -> None:
    model, recorder = model_of("llama"), MemoryRecorder()
    ids = torch.tensor(prompts(8))
    with actscope.capture(model, sites="2", recorder=recorder), torch.no_grad():
        model(ids[:, :5], use_cache=False)
        model(ids, use_cache=False)
    assert recorder.requests == ["r000001", "r000002"]
    assert recorder.ids("r000002", _POST) == ids[0].tolist()


def test_within_a_request_a_longer_pass_recomputes_and_another_text_is_another_request() -> None:
    model, recorder = model_of("llama"), MemoryRecorder()
    ids = torch.tensor(prompts(8))
    with actscope.capture(model, sites="2", recorder=recorder) as cap, torch.no_grad(), cap.request("mine"):
        model(ids[:, :5], use_cache=False)
        model(ids, use_cache=False)
        model(ids.flip(1), use_cache=False)
    assert recorder.requests == ["mine", "mine#2"]
    flags = recorder.flags("mine", _POST)
    assert flags == [RowFlag.PREFILL | RowFlag.RECOMPUTED] * 5 + [RowFlag.PREFILL] * 3
    assert recorder.ids("mine#2", _POST) == ids.flip(1)[0].tolist()


def test_generating_without_a_cache_is_one_request() -> None:
    model, recorder = model_of("llama"), MemoryRecorder()
    ids = torch.tensor(prompts(5))
    with actscope.capture(model, sites="2", recorder=recorder):
        out = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False, eos_token_id=None)
    assert recorder.requests == ["r000001"]
    assert recorder.ids("r000001", _POST) == out[0, :-1].tolist()
    assert [bool(flag & RowFlag.PREFILL) for flag in recorder.flags("r000001", _POST)] == [True] * 5 + [False] * 3


def test_embeddings_have_rows_and_positions_and_no_token() -> None:
    model, recorder = model_of("llama"), MemoryRecorder()
    ids = torch.tensor(prompts(5))
    with actscope.capture(model, sites="2", recorder=recorder):
        model.generate(
            inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=3, do_sample=False, eos_token_id=None
        )
    assert recorder.ids("r000001", _POST)[:5] == [-1] * 5
    assert min(recorder.ids("r000001", _POST)[5:]) >= 0


@pytest.mark.parametrize("part", ["model", "model.model"])
def test_the_body_inside_a_head_is_captured_by_either(part: str) -> None:
    """Capturing the head, a call of the body alone is a pass; capturing the body, a call of the head is one."""
    model, recorder = model_of("llama"), MemoryRecorder()
    ids = torch.tensor(prompts(5))
    captured, called = (model, model.model) if part == "model" else (model.model, model)
    with actscope.capture(captured, sites="2", recorder=recorder) as cap, torch.no_grad():
        called(ids)
    assert recorder.ids("r000001", _POST) == ids[0].tolist()
    assert cap.stats().passes == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_keep_the_models_own_dtype(dtype: torch.dtype) -> None:
    model, recorder = model_of("llama").to(dtype), MemoryRecorder()
    with (
        plain_hooks({_POST: (model.model.layers[2], "out")}) as plain,
        actscope.capture(model, sites="2", recorder=recorder),
        torch.no_grad(),
    ):
        model(torch.tensor(prompts(5)))
    assert torch.equal(recorder.rows("r000001", _POST), plain[_POST][0][0])
    assert recorder.rows("r000001", _POST).dtype == dtype


def test_training_goes_on_undisturbed() -> None:
    """Gradients equal those of a model without capture, and rows hold no graph."""
    model, recorder = model_of("llama").train().requires_grad_(True), MemoryRecorder()
    ids = torch.tensor(prompts(6))
    model(ids, labels=ids).loss.backward()
    bare = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with actscope.capture(model, sites="all", recorder=recorder):
        model(ids, labels=ids).loss.backward()
    assert all(torch.equal(p.grad, bare[name]) for name, p in model.named_parameters())
    assert len(recorder.rows("r000001", _POST)) == 6


def test_a_compiled_model_is_captured_too() -> None:
    """torch.compile runs the hooks between its pieces."""
    model, recorder = model_of("llama"), MemoryRecorder()
    ids = torch.tensor(prompts(6))
    with (
        plain_hooks({_POST: (model.model.layers[2], "out")}) as plain,
        actscope.capture(model, sites="2", recorder=recorder) as cap,
        torch.no_grad(),
    ):
        torch.compile(model, backend="eager")(ids)  # type: ignore[no-untyped-call]
    assert torch.equal(recorder.rows("r000001", _POST), plain[_POST][0][0])
    assert cap.stats().incomplete_passes == cap.stats().unowned_rows == 0


def test_ids_that_a_user_gives_and_ids_that_are_counted_never_meet() -> None:
    """Two sequences under one id would pass for one request."""
    model, recorder = model_of("llama"), MemoryRecorder()
    given = ["r000002", "a#2", "a", "a", "r000001"]
    with actscope.capture(model, sites="2", recorder=recorder) as cap, torch.no_grad():
        for n, request in enumerate(given[:4]):
            with cap.request(request):
                model(torch.tensor(prompts(4 + n, seed=n)))
        for n in range(3):
            model(torch.tensor(prompts(8 + n, seed=8 + n)))
        with cap.request(given[4]):
            model(torch.tensor(prompts(12, seed=12)))
    assert recorder.requests == ["r000002", "a#2", "a", "a#3", "r000001", "r000003", "r000004", "r000001#2"]
    assert [len(recorder.newest(request, _POST)) for request in recorder.requests] == [4, 5, 6, 7, 8, 9, 10, 12]


def test_what_guidance_runs_beside_has_a_prompt_of_its_own() -> None:
    """Classifier-free guidance runs the answer without its prompt; of that request only the first token is a prompt."""
    model, recorder = model_of("llama"), MemoryRecorder()
    with actscope.capture(model, sites="2", recorder=recorder) as cap, cap.request("a"):
        model.generate(torch.tensor(prompts(5)), max_new_tokens=6, do_sample=False, guidance_scale=1.5, pad_token_id=0)
    assert [flags == RowFlag.PREFILL for flags in recorder.flags("a", _POST)] == [True] * 5 + [False] * 5
    assert [flags == RowFlag.PREFILL for flags in recorder.flags("a#2", _POST)] == [True] + [False] * 5


def _bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


def _mpt() -> Any:
    from transformers import MptConfig, MptForCausalLM

    return MptForCausalLM(MptConfig(vocab_size=64, d_model=32, n_heads=4, n_layers=2))


def _falcon() -> Any:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4))


@pytest.mark.parametrize("make", [_bloom, _mpt, _falcon])
def test_attention_and_mlp_add_up_to_what_a_block_adds(make: Any) -> None:
    """BLOOM and MPT make the sum within these modules: what comes out of them is not what they add."""
    torch.manual_seed(0)
    model, recorder = make().eval(), MemoryRecorder()
    points = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    with actscope.capture(model, sites="1", points=points, recorder=recorder), torch.no_grad():
        model(torch.tensor([[1, 2, 3, 4]]))
    before, attention, mlp, after = (recorder.rows("r000001", f"layers.1.{point}") for point in points)
    torch.testing.assert_close(before + attention + mlp, after)
