"""The bed itself: real vLLM on CPU, without any plugin, says what transformers says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.vllm import reference
from support.vllm.bed import Configuration
from support.vllm.models import CONFIGURATIONS, LAYERS, WIDTH
from support.vllm.pool import Engines

PROMPTS = [list(range(5, 30)), [40, 41, 42], list(range(300, 340, 2))]


def test_vllm_and_transformers_choose_the_same_tokens(model: Callable[[str], Path], engines: Engines) -> None:
    """Greedy tokens in fp32 are equal, prompts in one batch against texts run alone."""
    engine = engines.offline(Configuration(model("llama"), plugin=False))
    answers = engine.generate(PROMPTS, max_tokens=8)
    assert [a.token_ids for a in answers] == [reference.greedy(model("llama"), prompt, 8) for prompt in PROMPTS]
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
