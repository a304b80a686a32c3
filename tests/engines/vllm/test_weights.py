"""A running model gets other weights: its rows say so, and are checked again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engines.vllm.test_rows import PROBES, recording_all
from safetensors.torch import load_file, save_file
from support.vllm import mixed
from support.vllm.bed import Configuration, Offline
from support.vllm.pool import Engines, short_directory
from support.vllm.watching import Control, card

INSIDE = "support.vllm.inside:"


@pytest.fixture
def start(model: Callable[[str], Path], engines: Engines) -> Iterator[Callable[[], tuple[Offline, Path]]]:
    """`start()`: an engine that records everything, and the directory of its recording."""
    directory = short_directory()

    def one() -> tuple[Offline, Path]:
        way = Configuration(model("llama"), arguments=mixed.CROWDED, environment=recording_all(directory))
        return engines.start(Offline, way), directory / "record"

    yield one
    engines.end()
    shutil.rmtree(directory, ignore_errors=True)


def other_weights(base: Path, factor: float) -> Path:
    """The model with the weights of all norms multiplied."""
    path = base.parent / f"{base.name}-times-{factor}"
    if not path.exists():
        shutil.copytree(base, path)
        weights = load_file(path / "model.safetensors")
        changed = {name: value * (factor if "norm" in name else 1) for name, value in weights.items()}
        save_file(changed, path / "model.safetensors", {"format": "pt"})
    return path


def test_rows_behind_a_change_of_the_weights_are_the_new_models_and_say_so(
    start: Callable[[], tuple[Offline, Path]], model: Callable[[str], Path]
) -> None:
    """By vLLM's own method, then by the model's, as worker extensions call it; a request in mid-run has a mark for each."""
    engine, record = start()
    base = model("llama")
    paths = {"before": base, "after": other_weights(base, 1.3), "later": other_weights(base, 0.8)}

    def drive(driver: mixed.Driver) -> None:
        driver.add("before", mixed.prompt(5, 40), max_tokens=4)
        driver.drain()
        driver.add("during", mixed.prompt(6, 12), max_tokens=24)
        driver.step(8)
        for seed, name, directly in ((7, "after", False), (8, "later", True)):
            engine.call(INSIDE + "reload", path=str(paths[name]), directly=directly)
            driver.step(4)
            driver.add(name, mixed.prompt(seed, 40), max_tokens=4)
            driver.step(8)
        driver.drain()
        health = Control(card(engine)).get("/health")
        assert {name: health[name] for name in ("status", "refused", "weights")} == {
            "status": "ok",
            "refused": {},
            "weights": 2,
        }

    ran = mixed.run(engine, PROBES, record, drive)
    assert ran.recording is not None and ran.counts["tap_faults"] == ran.counts["faults"] == 0
    for name, path in paths.items():
        rows = ran.recording.rows("layers.2.resid_post", request=name)
        right = mixed.truth(path, ran.texts[name, 0].ids)[0]["layers.2.resid_post"]
        np.testing.assert_allclose(rows.values, right[: len(rows.values)], rtol=0, atol=1e-4 * np.abs(right).max())
    seen = {name: sorted(set(ran.seen[name, 0].rows["weights"].tolist())) for name in (*paths, "during")}
    assert seen == {"before": [0], "after": [1], "later": [2], "during": [0, 1, 2]}
    marks = {
        name: [m.why for m in ran.recording.marks if m.request == name and "weights" in m.why]
        for name in (*paths, "during")
    }
    assert marks == {"before": [], "after": ["weights 1"], "later": ["weights 2"], "during": ["weights 1", "weights 2"]}


def test_a_site_that_is_not_read_right_any_more_is_not_delivered(start: Callable[[], tuple[Offline, Path]]) -> None:
    """No score, no row, in no recording; the reason is in the log, at the sidecar, and in the answer to a probe."""
    engine, record = start()
    refused: dict[str, str] = {}

    def drive(driver: mixed.Driver) -> None:
        driver.add("before", mixed.prompt(5, 40), max_tokens=4)
        driver.drain()
        engine.call(INSIDE + "change_norms")
        driver.add("after", mixed.prompt(7, 40), max_tokens=4)
        driver.drain()
        control = Control(card(engine))
        refused.update(control.get("/health")["refused"])
        assert "layers.0.resid_post" in refused and not {"embed", "layers.0.resid_pre", "final_norm"} & set(refused)
        status, answer = control.put_probe(PROBES[0])
        assert status == 400 and "cannot be read: none of the 2 tensors" in answer["error"]["message"]

    ran = mixed.run(engine, PROBES, record, drive)
    assert ran.recording is not None
    seen = ran.seen["after", 0]
    for probe in PROBES:
        missing = np.isnan(seen.scores[:, ran.columns[probe.id]])
        assert missing.all() if probe.info.site in refused else not missing.any(), probe.id
    assert not np.isnan(ran.seen["before", 0].scores[:, list(ran.columns.values())]).any()
    assert "after" not in ran.recording.requests and "before" in ran.recording.requests
    assert "refused, no scores and no rows are delivered" in engine.log
