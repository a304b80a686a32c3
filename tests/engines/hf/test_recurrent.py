"""The engine serves models with recurrent states exactly: the text is that of `generate`, rows are those of a plain pass."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from support.capture.harness import MemoryRecorder
from support.hf.harness import Harness, random_probes, random_prompts
from support.hf.recurrent import RECURRENT, recurrent
from support.hf.tiny import byte_tokenizer

import actscope
from actscope.capture.prompts import Prompt, run_prompts
from actscope.engines.hf.lanes.lanes import calls_of
from actscope.engines.hf.lanes.serving_check import checked_calls
from actscope.engines.hf.loading import LoadedModel, adopt
from actscope.errors import EngineError, RequestRefused
from actscope.frames import SCORES
from actscope.sites import select

LENGTHS = (5, 30, 11, 18, 7, 22)
_SITES = ("layers.1.resid_post", "layers.2.resid_post")


def adopted(kind: str) -> LoadedModel:
    return adopt(recurrent(kind), byte_tokenizer(), name=f"tiny/{kind}")


def plain_rows(loaded: LoadedModel, ids: list[int]) -> dict[str, np.ndarray]:
    """float32 [n, d] of each site, by hooks on the blocks in one pass without a cache."""
    body: Any = loaded.model
    body = getattr(body, "model", None) or getattr(body, "backbone", None) or body.rwkv
    blocks = getattr(body, "layers", None) or body.blocks
    found: dict[int, torch.Tensor] = {}
    hooks = [
        blocks[layer].register_forward_hook(
            lambda m, a, out, layer=layer: found.__setitem__(layer, out[0] if isinstance(out, tuple) else out)
        )
        for layer in (1, 2)
    ]
    with torch.no_grad():
        loaded.model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {f"layers.{layer}.resid_post": rows[0].numpy() for layer, rows in found.items()}


#: It keeps its state in its modules: two requests at once would share it.
_REFUSED = ("recurrent_gemma",)


@pytest.mark.parametrize("kind", [kind for kind in RECURRENT if kind not in _REFUSED])
def test_requests_that_join_and_leave_have_the_text_of_generate_and_rows_of_a_plain_pass(kind: str) -> None:
    loaded, probes, prompts = adopted(kind), random_probes()[4:12], random_prompts(LENGTHS)
    assert loaded.calls.batching in ("joined", "alone")
    with Harness(loaded, probes=probes, max_step_tokens=64, chunk_tokens=16) as run:
        run.engine.keep_rows(select(",".join(_SITES), 4)).result()
        for i, (name, prompt) in enumerate(prompts.items()):
            run.submit(name, prompt, max_tokens=6 + i)
            if i == 3:
                run.wait_tokens("r0", 2)  # the last two come while others decode
        run.wait_end(*prompts)
    for i, (name, prompt) in enumerate(prompts.items()):
        given = torch.tensor([prompt])  # without a mask, MiniMax counts its positions wrong (transformers 5.23)
        out: Any = loaded.model.generate(  # type: ignore[operator]
            given, attention_mask=torch.ones_like(given), max_new_tokens=6 + i, do_sample=False, eos_token_id=None
        )
        ids = out[0].tolist()
        assert [*prompt, *run.ids(name)] == ids
        found, expected = run.rows(name), plain_rows(loaded, ids[:-1])
        assert sorted(found) == list(range(len(ids) - 1))
        assert [found[p][0] for p in sorted(found)] == ids[:-1]
        for position, (_, rows) in found.items():
            for site in _SITES:
                np.testing.assert_allclose(rows[site], expected[site][position], rtol=0, atol=1e-4)
            for column, probe in enumerate(probes):
                if probe.info.site in _SITES:
                    score = probe.score(expected[probe.info.site][position][None])[0]
                    np.testing.assert_allclose(rows[SCORES][column], score, atol=1e-3)


def test_how_a_model_is_served_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        adopted("jamba")
    told = [record.message for record in caplog.records if "recurrent states" in record.message]
    assert len(told) == 1
    assert "each prompt runs by itself" in told[0]


@pytest.mark.parametrize(
    ("kind", "batching", "chunks"),
    [
        ("mamba", "joined", False), ("mamba2", "joined", True), ("rwkv", "alone", True), ("jamba", "joined", False),
        ("lfm2", "joined", True), ("qwen3_next", "joined", True), ("minimax", "alone", False),
    ],
)  # fmt: skip
def test_the_fastest_way_that_is_exact_is_found(kind: str, batching: str, chunks: bool) -> None:
    """In transformers 5.23, Mamba and Jamba forget their state between chunks, and RWKV and MiniMax only decode one by one."""
    loaded = adopted(kind)
    assert (loaded.calls.batching, loaded.calls.chunks) == (batching, chunks)


@pytest.mark.parametrize("kind", _REFUSED)
def test_a_model_that_cannot_be_served_exactly_is_refused_and_told_what_does(kind: str) -> None:
    with pytest.raises(EngineError, match=r"(?s)cannot be served exactly.*vLLM with the actscope plugin.*capture"):
        adopted(kind)


def test_a_compiled_model_is_refused() -> None:
    """Its code would not run the taps."""
    model = recurrent("lfm2")
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(EngineError, match="load it uncompiled"):
        adopt(model, byte_tokenizer(), name="tiny/lfm2")


def test_a_state_that_is_mixed_up_between_lanes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were lanes joined in the wrong order, the check would refuse it."""
    from actscope.engines.hf.lanes import lanes

    model = recurrent("lfm2")
    calls = calls_of(model, model.config, recurrent=True)
    assert checked_calls(model, calls, 258, "lfm2").batching == "joined"
    union = lanes._Union.state

    def turned(self: Any, tensor: torch.Tensor, path: tuple[object, ...]) -> torch.Tensor:
        return union(self, tensor, path).flip(0)

    monkeypatch.setattr(lanes._Union, "state", turned)
    assert checked_calls(model, calls, 258, "lfm2").batching == "alone"


def test_a_prompt_that_must_run_in_one_pass_is_refused_if_it_is_longer() -> None:
    loaded = adopted("mamba")
    assert not loaded.calls.chunks
    with Harness(loaded, max_step_tokens=32, max_batch=8) as run:
        with pytest.raises(RequestRefused, match="larger --max-step-tokens"):
            run.submit("long", [1] * 33)
        run.run({"fits": [1] * 32}, max_tokens=3)
    assert len(run.ids("fits")) == 3


def test_cancelled_requests_leave_and_the_others_do_not_notice() -> None:
    loaded, prompts = adopted("jamba"), random_prompts([6, 12, 9])
    with Harness(loaded) as calm:
        calm.run({"r0": prompts["r0"]}, max_tokens=40)
    with Harness(loaded) as run:
        for name in prompts:
            run.submit(name, prompts[name], max_tokens=40 if name == "r0" else 400)
        run.wait_tokens("r2", 3)
        run.engine.abort("r1")
        run.engine.abort("r2")
        run.wait_end(*prompts)
    assert run.ids("r0") == calm.ids("r0")
    assert [run.outputs[name][-1].finish_reason for name in prompts] == ["length", "abort", "abort"]


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "falcon_h1"])
@pytest.mark.parametrize("max_tokens", [0, 4])
def test_prompts_of_several_lengths_are_captured_without_padding(kind: str, max_tokens: int) -> None:
    """A recurrent state takes up the padding on its left; `actscope capture` runs prompts of one length together."""
    loaded, recorder = adopted(kind), MemoryRecorder()
    prompts = [Prompt(name, text) for name, text in [("a", "one two"), ("b", "one"), ("c", "sun and"), ("d", "rain")]]
    with actscope.capture(loaded.model, sites="2", recorder=recorder, policy="error") as cap:
        run_prompts(loaded, prompts, cap, max_tokens=max_tokens, batch=4, progress=lambda done, total: None)
    for prompt in prompts:
        ids = recorder.ids(prompt.id, _SITES[1])
        assert ids[: len(prompt.text)] == loaded.tokenizer(prompt.text)["input_ids"]
        expected = plain_rows(loaded, ids)[_SITES[1]]
        np.testing.assert_allclose(recorder.rows(prompt.id, _SITES[1]).numpy(), expected, rtol=0, atol=1e-4)
