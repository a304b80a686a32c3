"""The engine as a server of requests: sampling, stopping, cancelling, refusing."""

from __future__ import annotations

import pytest
from harness import Harness, random_prompts
from tiny import tiny

from actscope.engines.hf.request import Request, Sampling
from actscope.errors import RequestRefused
from actscope.frames import SpanFlag


@pytest.fixture(scope="module")
def loaded():
    return tiny("llama")


def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch(loaded) -> None:
    params = dict(temperature=0.9, top_p=0.95, top_k=50, seed=7)
    with Harness(loaded) as alone:
        alone.run({"r": [5, 6, 7]}, **params)
    with Harness(loaded) as crowd:
        crowd.run(random_prompts([4, 9, 17]) | {"r": [5, 6, 7]}, **params)
    assert crowd.ids("r") == alone.ids("r")


def test_different_seeds_draw_different_tokens(loaded) -> None:
    with Harness(loaded) as run:
        for seed in range(4):
            run.submit(f"s{seed}", [5, 6, 7], temperature=1.0, seed=seed)
        run.wait_end(*(f"s{seed}" for seed in range(4)))
    assert len({tuple(run.ids(f"s{seed}")) for seed in range(4)}) == 4


def test_top_k_of_one_is_greedy(loaded) -> None:
    with Harness(loaded) as run:
        run.submit("greedy", [1, 2])
        run.submit("top1", [1, 2], temperature=1.0, top_k=1)
        run.wait_end("greedy", "top1")
    assert run.ids("greedy") == run.ids("top1")


def test_max_tokens_ends_with_length_and_eos_ends_with_stop(loaded) -> None:
    with Harness(loaded) as run:
        run.run({"r": [1, 2, 3]}, max_tokens=5)
        eos = run.ids("r")[2]
        run.engine._eos_ids = frozenset({eos})
        run.run({"e": [1, 2, 3]}, ignore_eos=False)
    assert (len(run.ids("r")), run.outputs["r"][-1].finish_reason) == (5, "length")
    assert (run.ids("e"), run.outputs["e"][-1].finish_reason) == (run.ids("r")[: run.ids("r").index(eos) + 1], "stop")


def test_a_stop_string_cuts_the_text_before_it_even_across_tokens(loaded) -> None:
    with Harness(loaded) as run:
        run.run({"whole": [65, 66]}, max_tokens=30)
        text = run.text("whole")
        stop = text[9:12]
        run.run({"cut": [65, 66]}, max_tokens=30, stop=(stop,))
    assert run.text("cut") == text[: text.index(stop)]
    assert run.outputs["cut"][-1].finish_reason == "stop"


def test_a_cancelled_request_leaves_and_the_others_do_not_notice(loaded) -> None:
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


def test_cancelling_during_a_chunked_prefill_leaves_the_rest_right(loaded) -> None:
    """Any of a group may leave between two chunks, the longest one too; the others' rows and ids stay their own."""
    prompts = random_prompts([60, 8, 33])
    with Harness(loaded) as calm:
        calm.run(prompts)
    for gone in prompts:
        with Harness(loaded, max_step_tokens=24) as run:
            run.engine.call(lambda run=run, gone=gone: [run.submit(n, p) for n, p in prompts.items()])
            run.engine.call(lambda: None).result()
            run.engine.abort(gone)
            run.wait_end(*prompts)
        for name in set(prompts) - {gone}:
            assert run.ids(name) == calm.ids(name)
            assert sorted(run.rows(name)) == sorted(calm.rows(name))


def test_a_step_that_fails_ends_its_requests_with_the_reason_and_the_engine_serves_on(loaded, caplog) -> None:
    with Harness(loaded) as run:
        run.engine.submit(Request("bad", [10**6], Sampling(max_tokens=3, temperature=0)))  # no such embedding
        run.wait_end("bad")
        run.run({"good": [1, 2, 3]})
    assert run.outputs["bad"][-1].error
    assert run.outputs["good"][-1].finish_reason == "length"


@pytest.mark.parametrize(
    "wrong",
    [dict(max_tokens=0), dict(temperature=-1), dict(top_p=0), dict(top_p=1.5), dict(min_p=2), dict(repetition_penalty=0),
     dict(stop=("",)), dict(temperature=float("nan"))],
)  # fmt: skip
def test_a_parameter_out_of_bounds_is_refused_by_name(wrong) -> None:
    with pytest.raises(RequestRefused) as caught:
        Sampling(**wrong)
    assert caught.value.param == next(iter(wrong))


def test_a_prompt_too_long_for_the_context_is_refused_with_the_arithmetic(loaded) -> None:
    with Harness(loaded) as run, pytest.raises(RequestRefused, match="512") as caught:
        run.submit("r", [1] * 505, max_tokens=20)
    assert caught.value.code == "context_length_exceeded"


def test_penalties_change_what_is_drawn(loaded) -> None:
    with Harness(loaded) as run:
        run.submit("plain", [1, 2, 3], max_tokens=40)
        run.submit(
            "penalised", [1, 2, 3], max_tokens=40, frequency_penalty=2.0, presence_penalty=2.0, repetition_penalty=1.5
        )
        run.wait_end("plain", "penalised")
    assert len(set(run.ids("penalised"))) > len(set(run.ids("plain")))


def test_closing_the_engine_ends_what_runs_as_aborted(loaded) -> None:
    with Harness(loaded) as run:
        run.submit("r", [1, 2, 3], max_tokens=400)
        run.wait_tokens("r", 2)
    assert run.outputs["r"][-1].finish_reason == "abort"
