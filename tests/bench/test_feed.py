"""The benches of the feed run, in small: their figures are for `bench/runs/`, and need minutes on a machine of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from actscope.bench import feed
from actscope.bench.support import feed_generating, saelens
from actscope.bench.support.feed_transport import TransportSizes
from actscope.bench.support.samples import Samples, absent, result

FIELDS = {"name", "value", "unit", "baseline", "runs", "min", "max", "bar", "ok"}
needs_saelens = pytest.mark.skipif(find_spec("sae_lens") is None, reason="sae-lens is not installed")


def quiet(what: str) -> None:
    """Progress is for people."""


def of(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert all(set(one) == FIELDS for one in results)
    return {one["name"]: one for one in results}


def test_transport_is_measured_by_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real feed of a wide model, a bare server, and all ways to its rows: each gives a figure."""
    monkeypatch.setattr(feed, "MIN_ROUNDS", 1)
    found = of(feed.transport(tmp_path, 0.0, quiet, TransportSizes(window_rows=1024, batch=256)))
    assert {"http_ratio", "client_vs_httpx", "zero_copy_gbps", "zero_copy_view_gbps", "turn_gather_gbps"} <= set(found)
    assert {"memcpy_gbps", "vs_dataloader", "near_take_p99_ms", "http_take_p50_ms"} <= set(found)
    assert all(one["value"] > 0 for one in found.values())
    assert [found[name]["bar"] for name in ("http_ratio", "client_vs_httpx", "zero_copy_gbps")] == [0.9, 4.0, 10.0]


def test_a_peer_is_absent_rather_than_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows per second of the feed are measured without SAELens too; the ratio to it then has no value, and says why."""
    monkeypatch.setattr(saelens, "installed", lambda: False)
    monkeypatch.setattr(feed_generating, "WINDOW_ROWS", 1024)
    found = of(feed_generating.measure(0.1, quiet))
    assert found["generated_rows_per_s"]["value"] > 0
    assert found["vs_saelens_store"]["value"] is None
    assert found["vs_saelens_store"]["baseline"] == "absent: sae-lens is not installed"


@needs_saelens
def test_an_sae_is_trained_on_both_sides_and_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the active features that TopK allows; a few steps explain little, and that is told as it is."""
    from actscope.bench import sae

    monkeypatch.setattr(saelens, "_BUFFER", 2048)
    monkeypatch.setattr(sae, "BATCH", 256)
    monkeypatch.setattr(sae, "_ROUNDS", 1)
    monkeypatch.setattr(sae, "_BUFFER", 2048)
    monkeypatch.setattr(sae, "_JUDGED_TEXTS", 20)
    with saelens.quiet():
        import sae_lens  # noqa: F401  # warns while it is imported
    found = of(sae.run(0.5, quiet))
    for side in ("feed", "saelens"):
        assert found[f"{side}_l0"]["value"] == pytest.approx(sae.ACTIVE, abs=0.1)
        assert found[f"{side}_explained_variance"]["value"] < 1
        assert 0 <= found[f"{side}_dead_features"]["value"] <= sae.FEATURES
    assert found["train_speed_ratio"]["value"] > 0


def test_a_result_is_the_median_and_an_absent_one_fails_no_bar() -> None:
    samples = Samples()
    for ours, theirs in ((1.0, 2.0), (3.0, 2.0), (4.0, 2.0)):
        samples.add("ours", ours)
        samples.add("theirs", theirs)
    found = result("ratio", samples.ratios("ours", "theirs"), "x", "theirs", bar=2.0)
    assert (found["value"], found["min"], found["max"], found["runs"], found["ok"]) == (1.5, 0.5, 2.0, 3, False)
    assert absent("ratio", "x", "not installed")["ok"]
