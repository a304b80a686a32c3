"""The engine as a server of requests: sampling, stopping, cancelling, refusing."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from support.hf.harness import Harness, random_prompts
from support.hf.tiny import tiny

from actscope.engines.hf.loading import LoadedModel
from actscope.engines.hf.request import Output, Request, Sampling
from actscope.errors import RequestRefused
from actscope.frames import SpanFlag
from actscope.sites import select


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny("llama")


def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch(loaded: LoadedModel) -> None:
    params = dict(temperature=0.9, top_p=0.95, top_k=50, seed=7)
    with Harness(loaded) as alone:
        alone.run({"r": [5, 6, 7]}, **params)
    with Harness(loaded) as crowd:
        crowd.run(random_prompts([4, 9, 17]) | {"r": [5, 6, 7]}, **params)
    assert crowd.ids("r") == alone.ids("r")


def test_different_seeds_draw_different_tokens(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        for seed in range(4):
            run.submit(f"s{seed}", [5, 6, 7], temperature=1.0, seed=seed)
        run.wait_end(*(f"s{seed}" for seed in range(4)))
    assert len({tuple(run.ids(f"s{seed}")) for seed in range(4)}) == 4


def test_top_k_of_one_is_greedy(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        run.submit("greedy", [1, 2])
        run.submit("top1", [1, 2], temperature=1.0, top_k=1)
        run.wait_end("greedy", "top1")
    assert run.ids("greedy") == run.ids("top1")


def test_max_tokens_ends_with_length_and_eos_ends_with_stop(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        run.run({"r": [1, 2, 3]}, max_tokens=5)
        eos = run.ids("r")[2]
        run.engine._eos_ids = frozenset({eos})
        run.run({"e": [1, 2, 3]}, ignore_eos=False)
    assert (len(run.ids("r")), run.outputs["r"][-1].finish_reason) == (5, "length")
    assert (run.ids("e"), run.outputs["e"][-1].finish_reason) == (run.ids("r")[: run.ids("r").index(eos) + 1], "stop")


def test_a_stop_string_cuts_the_text_before_it_even_across_tokens(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        run.run({"whole": [65, 66]}, max_tokens=30)
        text = run.text("whole")
        stop = text[9:12]
        run.run({"cut": [65, 66]}, max_tokens=30, stop=(stop,))
    assert run.text("cut") == text[: text.index(stop)]
    assert run.outputs["cut"][-1].finish_reason == "stop"


def test_a_cancelled_request_leaves_and_the_others_do_not_notice(loaded: LoadedModel) -> None:
    prompts = random_prompts([6, 12])
    with Harness(loaded) as calm:
        calm.run({"r0": prompts["r0"]}, max_tokens=40)
    with Harness(loaded) as run:
        run.submit("r0", prompts["r0"], max_tokens=40)
        run.submit("gone", prompts["r1"], max_tokens=400)
        run.wait_tokens("gone", 3)
        run.engine.abort("gone")
        run.wait_end("r0", "gone")
    assert run.outputs["gone"][-1].finish_reason == "abort"
    assert len(run.ids("gone")) < 400
    assert run.ids("r0") == calm.ids("r0")
    ended = [s for step, _ in run.sink.steps for s in step.spans if s.request == "gone" and SpanFlag.END in s.flags]
    assert [SpanFlag.ABORTED in s.flags for s in ended] == [True]


def submit_all(run: Harness, prompts: dict[str, list[int]]) -> None:
    for name, prompt in prompts.items():
        run.submit(name, prompt)


def test_cancelling_between_two_chunks_of_a_prefill_leaves_the_rest_right(loaded: LoadedModel) -> None:
    """When any request of a group is cancelled, the longest too, the others keep their ids, positions and rows."""
    prompts = random_prompts([60, 8, 33])
    sites = select("1,3", 4)
    with Harness(loaded) as calm:
        calm.engine.keep_rows(sites).result()
        calm.run(prompts)
    for gone in prompts:
        with Harness(loaded, max_step_tokens=24, max_batch=8) as run:
            run.engine.keep_rows(sites).result()
            run.after_step(3, partial(run.engine.abort, gone))
            # on the model's thread, so that the three are admitted together
            run.engine.call(partial(submit_all, run, prompts))
            run.wait_end(*prompts)
        assert run.outputs[gone] == [Output(gone, finish_reason="abort")]  # before its first token
        for name in set(prompts) - {gone}:
            assert run.ids(name) == calm.ids(name)
            found, expected = run.rows(name), calm.rows(name)
            assert sorted(found) == sorted(expected)
            for position, (token, rows) in expected.items():
                assert found[position][0] == token
                for site in sites:
                    np.testing.assert_allclose(found[position][1][site.name], rows[site.name], atol=1e-4)


def test_one_request_that_cannot_be_drawn_ends_alone(loaded: LoadedModel) -> None:
    """Logits that are not finite, or a decoder that gives up, are that request's own trouble."""
    with Harness(loaded) as run:
        run.submit("innocent", [1, 2, 3], max_tokens=60)
        run.submit("bad", [4, 5, 6], max_tokens=60)
        run.wait_tokens("bad", 2)

        def break_bad() -> None:
            for sequence in run.engine._batches[0].sequences:
                if sequence.request.id == "bad":
                    sequence.text = None  # type: ignore[assignment]

        run.engine.call(break_bad)
        run.wait_end("innocent", "bad")
    assert run.outputs["bad"][-1].finish_reason == "error"
    assert (run.outputs["innocent"][-1].finish_reason, len(run.ids("innocent"))) == ("length", 60)


def test_a_temperature_near_zero_is_greedy_and_does_not_overflow(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        run.submit("tiny", [1, 2, 3], temperature=1e-39, presence_penalty=0.1)
        run.submit("zero", [1, 2, 3], temperature=0, presence_penalty=0.1)
        run.wait_end("tiny", "zero")
    assert run.ids("tiny") == run.ids("zero")


def test_an_abort_that_meets_its_request_at_admission_is_answered(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:

        def submit_and_abort() -> None:
            run.submit("r", [1, 2, 3])
            run.engine.abort("r")

        run.engine.call(submit_and_abort)
        run.wait_end("r")
        run.submit("r", [1, 2, 3])  # its id is free again
        run.engine.call(lambda: None).result()
    assert run.outputs["r"][0].finish_reason == "abort"


def test_an_id_that_is_in_flight_is_refused(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        run.submit("r", [1, 2, 3], max_tokens=300)
        with pytest.raises(RequestRefused, match="in flight"):
            run.submit("r", [1, 2, 3])


def test_a_cancelled_call_does_not_end_the_engine(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        run.submit("r", [1, 2, 3], max_tokens=50)
        run.engine.call(lambda: None).cancel()
        run.wait_end("r")
        assert run.engine.alive


def test_closing_answers_those_who_still_wait(loaded: LoadedModel) -> None:
    with Harness(loaded, max_batch=1) as run:
        for name in ("a", "b", "c"):
            run.submit(name, [1, 2, 3], max_tokens=400)
        run.wait_tokens("a", 1)
    assert [run.outputs[name][-1].finish_reason for name in ("a", "b", "c")] == ["abort"] * 3


def test_a_step_that_fails_ends_its_requests_with_the_reason_and_the_engine_serves_on(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with Harness(loaded) as run:
        run.engine.submit(Request("bad", [10**6], Sampling(max_tokens=3, temperature=0)))  # no such embedding
        run.wait_end("bad")
        run.run({"good": [1, 2, 3]})
    assert run.outputs["bad"][-1].error
    assert run.outputs["good"][-1].finish_reason == "length"


@pytest.mark.parametrize(
    "wrong",
    [dict(max_tokens=0), dict(temperature=-1), dict(top_p=0), dict(top_p=1.5), dict(min_p=2), dict(repetition_penalty=0),
     dict(stop=("",)), dict(temperature=float("nan")), dict(seed=1 << 64)],
)  # fmt: skip
def test_a_parameter_out_of_bounds_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as caught:
        Sampling(**wrong)
    assert caught.value.param == next(iter(wrong))


def test_a_prompt_too_long_for_the_context_is_refused_with_the_arithmetic(loaded: LoadedModel) -> None:
    with Harness(loaded) as run, pytest.raises(RequestRefused, match="512") as caught:
        run.submit("r", [1] * 505, max_tokens=20)
    assert caught.value.code == "context_length_exceeded"


def test_penalties_change_what_is_drawn(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        run.submit("plain", [1, 2, 3], max_tokens=40)
        run.submit(
            "penalised", [1, 2, 3], max_tokens=40, frequency_penalty=2.0, presence_penalty=2.0, repetition_penalty=1.5
        )
        run.wait_end("plain", "penalised")
    assert len(set(run.ids("penalised"))) > len(set(run.ids("plain")))


def test_closing_the_engine_ends_what_runs_as_aborted(loaded: LoadedModel) -> None:
    with Harness(loaded) as run:
        run.submit("r", [1, 2, 3], max_tokens=400)
        run.wait_tokens("r", 2)
    assert run.outputs["r"][-1].finish_reason == "abort"
