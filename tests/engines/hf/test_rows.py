"""Rows and scores are those of a plain run of the same ids, with their right labels, however requests are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.hf.harness import Harness, hidden_states, random_probes, random_prompts
from support.hf.tiny import ARCHITECTURES, tiny

from actscope.errors import SiteError
from actscope.frames import SCORES
from actscope.probes import Probe, ProbeInfo
from actscope.sites import select

#: bfloat16 keeps 8 bits: batched and padded matmuls may round otherwise than a plain run does, once a layer.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}
LENGTHS = (5, 30, 11, 40, 7, 22)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_equal_output_hidden_states_for_every_request_of_a_batch(architecture: str) -> None:
    """Left padding, chunked prefill, joins and leaves: every position once, its own id, its own row and scores."""
    loaded, probes = tiny(architecture), random_probes()
    prompts = random_prompts(LENGTHS)
    with Harness(loaded, probes=probes, max_step_tokens=64, chunk_tokens=16) as run:
        run.engine.keep_rows(select("all,embed,final_norm", 4)).result()
        for i, (name, prompt) in enumerate(prompts.items()):
            run.submit(name, prompt, max_tokens=12 + i)
            if i == 3:
                run.wait_tokens("r0", 2)  # the last two join a batch that is decoding
        run.wait_end(*prompts)
    for name, prompt in prompts.items():
        ids = [*prompt, *run.ids(name)]
        found, expected = run.rows(name), hidden_states(loaded, ids)
        assert sorted(found) == list(range(len(ids) - 1))  # all but the last sampled token, which was never fed back
        assert [found[p][0] for p in sorted(found)] == ids[:-1]
        for position, (_, rows) in found.items():
            close(rows["embed"], expected[0][position])
            close(rows["final_norm"], expected[-1][position])
            for layer in range(3):
                close(rows[f"layers.{layer}.resid_post"], expected[layer + 1][position])
            for column, probe in enumerate(probes):
                close(rows[SCORES][column], probe.score(rows[probe.info.site][None])[0])


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_rows_equal_a_plain_run_within_the_stated_tolerance(architecture: str) -> None:
    loaded = tiny(architecture, torch.bfloat16)
    with Harness(loaded) as run:
        run.engine.keep_rows(select("all", 4)).result()
        run.run(random_prompts(LENGTHS))
    for name, prompt in random_prompts(LENGTHS).items():
        expected = hidden_states(loaded, [*prompt, *run.ids(name)])
        for position, (_, rows) in run.rows(name).items():
            for layer in range(3):
                difference = np.abs(rows[f"layers.{layer}.resid_post"] - expected[layer + 1][position])
                assert difference.max() <= TOLERANCE[torch.bfloat16] * max(1.0, np.abs(expected[layer + 1]).max())


def test_every_point_of_a_block_is_read_where_a_plain_hook_reads_it() -> None:
    loaded = tiny("llama")
    plain: dict[str, torch.Tensor] = {}
    block = loaded.model.model.layers[2]
    hooks = [
        block.self_attn.register_forward_hook(lambda m, a, out: plain.__setitem__("attn_out", out[0])),
        block.mlp.register_forward_hook(lambda m, a, out: plain.__setitem__("mlp_out", out)),
        block.register_forward_pre_hook(lambda m, a: plain.__setitem__("resid_pre", a[0])),
        block.register_forward_hook(lambda m, a, out: plain.__setitem__("resid_post", out)),
    ]
    prompt = random_prompts([20])["r0"]
    with torch.no_grad():
        loaded.model(torch.tensor([prompt]))
    for hook in hooks:
        hook.remove()
    sites = select("2.resid_pre,2.attn_out,2.mlp_out,2.resid_post", 4)
    with Harness(loaded) as run:
        run.engine.keep_rows(sites).result()
        run.run({"r0": prompt}, max_tokens=1)
    for site in sites:
        found = np.stack([rows[site.name] for _, (_, rows) in sorted(run.rows("r0").items())])
        np.testing.assert_allclose(found, plain[site.point][0].numpy(), rtol=0, atol=1e-5)


def test_identical_prompts_at_once_and_32_mixed_ones_score_as_each_does_alone() -> None:
    loaded, probes = tiny("llama"), random_probes()
    prompts = random_prompts([3 + 5 * (i % 7) for i in range(32)]) | {"twin_a": [72] * 9, "twin_b": [72] * 9}
    with Harness(loaded, probes=probes, max_batch=16) as together:
        together.run(prompts)
    with Harness(loaded, probes=probes) as alone:
        for name, prompt in prompts.items():
            alone.run({name: prompt})
    for name in prompts:
        assert together.ids(name) == alone.ids(name)
        np.testing.assert_allclose(together.scores(name), alone.scores(name), atol=1e-4)


def test_a_probe_added_swapped_or_removed_while_running_holds_from_a_known_step_on() -> None:
    """The generation of each step says which table its columns follow; a score never comes from another probe."""
    loaded, probes = tiny("llama"), random_probes()
    first, second = probes[0], probes[5].renamed(probes[0].id)
    with Harness(loaded, probes=[first]) as run:
        run.submit("r", [1, 2, 3], max_tokens=200)
        run.wait_tokens("r", 5)
        run.engine.put_probe(second).result()
        run.wait_tokens("r", 20)
        run.engine.remove_probe(first.id).result()
        run.wait_end("r")
    expected = hidden_states(loaded, [1, 2, 3, *run.ids("r")])
    generations = set()
    for step, frames in run.sink.steps:
        for row in range(step.n_rows):
            position, found = step.meta[row]["position"], np.asarray(frames[0].rows)[row][0]
            generations.add(step.generation)
            probe = {1: first, 2: second}.get(step.generation)
            if probe is None:
                assert np.isnan(found)
            else:
                close(found, probe.score(expected[layer_of(probe) + 1][position][None])[0])
    assert generations == {1, 2, 3}


def layer_of(probe: object) -> int:
    return probe.info.layer  # type: ignore[attr-defined, no-any-return]


def test_a_tap_that_fails_goes_quiet_alone_and_generation_goes_on() -> None:
    """The answer is as without the fault; the broken site's scores are not computed, never stale; the others' are right."""
    loaded, probes = tiny("llama"), random_probes()
    with Harness(loaded, probes=probes) as good:
        good.run({"r": [1, 2, 3]}, max_tokens=30)
    broken = [column for column, probe in enumerate(probes) if probe.info.layer == 1]
    with Harness(loaded, probes=probes) as run:
        run.submit("r", [1, 2, 3], max_tokens=30)
        run.wait_tokens("r", 5)

        def break_one() -> int:
            tap = next(tap for tap in run.engine._taps._scorers if tap.site.layer == 1)
            tap.read = lambda hidden: hidden.no_such_attribute  # type: ignore[attr-defined]  # it is what breaks
            return run.engine.stats.steps

        before = run.engine.call(break_one).result()
        run.wait_end("r")
    assert run.ids("r") == good.ids("r")
    assert run.engine.stats.tap_faults > 0
    found, expected = run.scores("r"), good.scores("r")
    first_blank = 3 + before - 1  # the prompt is one step, then each step is one position
    assert np.isnan(found[first_blank:, broken]).all()
    assert first_blank < len(found)
    whole = [column for column in range(len(probes)) if column not in broken]
    np.testing.assert_allclose(found[:, whole], expected[:, whole], atol=1e-5)
    np.testing.assert_allclose(found[:first_blank, broken], expected[:first_blank, broken], atol=1e-5)


def test_a_probe_at_a_place_that_the_model_lacks_is_refused_and_changes_nothing() -> None:
    """Scores of the probes that were there go on, under a generation whose table was published."""
    loaded = tiny("llama")
    good = random_probes()[0]
    tables: dict[int, bytes] = {}
    with Harness(loaded, probes=[good], on_table=tables.__setitem__) as run:
        bad = Probe(ProbeInfo(id="bad", site="layers.1.mlp_out"), good.weight)
        mlp = loaded.model.model.layers[1]._modules.pop("mlp")
        with pytest.raises(SiteError, match="mlp"):
            run.engine.put_probe(bad).result()
        loaded.model.model.layers[1]._modules["mlp"] = mlp
        run.run({"r": [1, 2, 3]})
        assert [probe.id for _, probe in run.engine.bank.items()] == [good.id]
    assert np.isfinite(run.scores("r")[:, 0]).all()
    assert {step.generation for step, _ in run.sink.steps} <= set(tables)


def test_a_table_that_cannot_be_published_leaves_the_old_probes_in_force() -> None:
    loaded, probes = tiny("llama"), random_probes()

    def publish(generation: int, table: bytes) -> None:
        if generation > 1:
            raise OSError("no room")

    with Harness(loaded, probes=probes[:1], on_table=publish) as run:
        with pytest.raises(OSError, match="no room"):
            run.engine.put_probe(probes[1]).result()
        run.run({"r": [1, 2, 3]})
    scores = run.scores("r")
    assert np.isfinite(scores[:, 0]).all()
    assert np.isnan(scores[:, 1]).all()
