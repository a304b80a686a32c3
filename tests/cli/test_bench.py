"""The benches run, and print one object of the agreed form. Their figures are for `bench/runs/`, not for tests."""

from __future__ import annotations

import json
import subprocess

import pytest
from support.servers import COMMAND

NAMES = {
    "gateway": {
        "added_latency_p50_ms", "added_latency_p99_ms", "added_ttft_p50_ms", "streams", "tokens_per_s_core", "kb_per_stream",
    },
    "store": {"write_ratio_none", "peak_rss_mb", "lost_rows"},
    "codec": {
        "error_bounded_ratio_1e-3", "error_bounded_error", "error_bounded_gbps", "lossless_bf16_ratio", "lossless_bf16_gbps",
    },
    "capture": {"hf_3_layers", "hf_all_layers", "hf_first_pass"},
    "soak": {"lost_rows", "rss_growth_mb"},
    "metrics": {"blockio_count_error", "offcpu_error", "cpu_percent", "timeline_explained_p01", "timeline_explained_p01_vllm"},
    "ring": {"latency_p50_ms", "latency_p99_ms", "rows_per_s", "torn_rows", "miscounted_gaps"},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_bench_prints_one_object_with_its_named_results(name: str) -> None:
    done = subprocess.run(
        [*COMMAND, "bench", name, "--seconds", "1", "--json"], stdout=subprocess.PIPE, text=True, timeout=400
    )
    report = json.loads(done.stdout)
    assert report["bench"] == name
    assert report["versions"]["actscope"]
    results = {result["name"]: result for result in report["results"]}
    assert set(results) >= NAMES[name]
    for result in results.values():
        assert set(result) >= {"name", "value", "unit", "baseline", "runs", "min", "max", "bar", "ok"}
    assert done.returncode == (0 if all(result["ok"] for result in results.values()) else 1)
    if name == "ring":
        assert results["torn_rows"]["value"] == results["miscounted_gaps"]["value"] == 0
