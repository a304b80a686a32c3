"""The bed itself: real vLLM on CPU, without any plugin, says what transformers says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.vllm import reference
from engines.vllm.bed import Configuration, Offline, Served
from engines.vllm.models import CONFIGURATIONS, LAYERS, WIDTH
from engines.vllm.pool import Engines

PROMPTS = [list(range(5, 30)), [40, 41, 42], list(range(300, 340, 2))]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_vllm_and_transformers_choose_the_same_tokens(
    name: str, model: Callable[[str], Path], engines: Engines
) -> None:
    """Greedy tokens in fp32 are equal, prompts in one batch against texts run alone."""
    engine = engines.offline(Configuration(model(name), plugin=False))
    answers = engine.generate(PROMPTS, max_tokens=8)
    assert [a.token_ids for a in answers] == [reference.greedy(model(name), prompt, 8) for prompt in PROMPTS]
    assert len({token for a in answers for token in a.token_ids}) > 5, "greedy tokens that repeat prove little"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_reference_keeps_the_stream_after_every_block(name: str, model: Callable[[str], Path]) -> None:
    """fp32 [layers, n, d], different in every layer, and a row does not depend on what comes after it."""
    rows = reference.resid_post(model(name), PROMPTS[0])
    assert rows.shape == (LAYERS, len(PROMPTS[0]), WIDTH) and rows.dtype == np.float32
    assert all(np.abs(rows[n] - rows[n + 1]).max() > 1e-2 for n in range(LAYERS - 1))
    np.testing.assert_allclose(reference.resid_post(model(name), PROMPTS[0][:10]), rows[:, :10], rtol=1e-4, atol=1e-4)


def test_requests_join_and_leave_between_steps(model: Callable[[str], Path], engines: Engines) -> None:
    """Steps are the test's own: a request joins another that runs, one is aborted, and the other's tokens stay the same."""
    engine = engines.offline(Configuration(model("llama"), plugin=False))
    first = engine.add("first", PROMPTS[0], max_tokens=12)
    (alone,) = engine.step()
    engine.add("second", PROMPTS[1], max_tokens=12)
    both = engine.step(2)[-1]
    engine.abort("second")
    done = engine.drain()
    assert [g.id for g in alone] == ["first"] and {g.id for g in both} == {"first", "second"}
    assert first.startswith("first-") and len(first) == len("first-") + 8
    assert done.keys() == {"first"} and done["first"].token_ids == reference.greedy(model("llama"), PROMPTS[0], 12)


def test_a_prefix_seen_before_is_read_from_the_cache(model: Callable[[str], Path], engines: Engines) -> None:
    """The second request says how many tokens were not computed, in whole blocks of 32."""
    engine = engines.offline(Configuration(model("llama"), plugin=False))
    prompt = list(range(100, 180))
    (cold,) = engine.generate([prompt])
    (warm,) = engine.generate([prompt])
    assert (cold.cached, warm.cached) == (0, 64) and cold.token_ids == warm.token_ids


def test_an_error_in_the_engine_is_the_tests_error(model: Callable[[str], Path], engines: Engines) -> None:
    """What the engine raised reaches the test with its traceback, and the engine lives on."""
    engine = engines.offline(Configuration(model("llama"), plugin=False))
    with pytest.raises(AssertionError, match="maximum"):
        engine.add("long", [5] * 600)
    assert engine.generate([PROMPTS[1]])


def test_an_adapter_changes_only_the_requests_that_ask_for_it(
    model: Callable[[str], Path], adapter: Path, engines: Engines
) -> None:
    """vLLM's CPU kernels apply the last slot to requests without an adapter, so one slot more than adapters is kept free."""
    lora = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    engine = engines.offline(Configuration(model("llama"), plugin=False, arguments=lora))
    engine.add("plain", PROMPTS[0])
    engine.add("adapted", PROMPTS[0], lora=adapter)
    done = engine.drain()
    assert done["plain"].token_ids == reference.greedy(model("llama"), PROMPTS[0], 8)
    assert done["adapted"].token_ids != done["plain"].token_ids


OTHERS: dict[str, dict[str, Any]] = {
    "v2": {"runner": "v2"},
    "compiled": {"compile": "compiled"},
    "chunked": {"arguments": {"max_num_batched_tokens": 16}},
    "tensor parallel": {"tensor_parallel": 2},
    "pipeline parallel": {"pipeline_parallel": 2, "runner": "v2"},
    "async": {"async_scheduling": True},
}


def batches_under_way(llm: Any) -> int:
    """How many steps the engine may have scheduled and not finished; runs in the engine's process."""
    under_way: int = llm.llm_engine.engine_core.engine_core.batch_queue_size
    return under_way


@pytest.mark.parametrize("name", OTHERS)
def test_every_way_to_run_gives_the_same_tokens(
    name: str, model: Callable[[str], Path], start: Callable[..., Offline]
) -> None:
    """The V2 runner, Inductor, chunked prefill, two ranks, two stages, async: the tokens are those of transformers."""
    engine = start(Offline, Configuration(model("llama"), plugin=False, **OTHERS[name]))
    expected = 2 if name in ("async", "pipeline parallel") else 1
    assert engine.call("engines.vllm.test_bed:batches_under_way") == expected
    answers = engine.generate(PROMPTS, max_tokens=6)
    assert [a.token_ids for a in answers] == [reference.greedy(model("llama"), prompt, 6) for prompt in PROMPTS]


def test_a_server_answers_and_leaves_nothing_behind(model: Callable[[str], Path], start: Callable[..., Served]) -> None:
    """Over HTTP the tokens are the same, and no process of its group outlives it."""
    engine = start(Served, Configuration(model("llama"), plugin=False))
    body = {"model": "llama", "prompt": PROMPTS[0], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    answer = engine.post("/v1/completions", {**body, "return_token_ids": True}, request_id="mine")
    assert answer["id"] == "cmpl-mine"
    assert tuple(answer["choices"][0]["token_ids"]) == reference.greedy(model("llama"), PROMPTS[0], 6)
