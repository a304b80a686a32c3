"""The matrix of architectures: a few of each kind are right, and the matrix sees what is wrong with a row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.servers import COMMAND
from torch import Tensor

from actscope.bench.models import page, results
from actscope.bench.models.architectures import Architecture
from actscope.bench.models.examine import examine
from actscope.bench.models.isolated import ChildFailed, run_isolated
from actscope.bench.models.rows import RowStore
from actscope.bench.models.verdicts import MatrixEntry
from actscope.frames import Step

ROOT = Path(__file__).parents[2]
#: Pixels as one picture, and as patches of a grid.
WITH_IMAGES = ("gemma3", "qwen2_vl")
#: Pre-norm, learned positions, norms behind, no MLP module, parallel, state space, factors, no input norm, BLOOM's sums, experts.
SUBSET = ("llama", "gpt2", "gemma2", "opt", "falcon", "mamba", "granite", "olmo2", "bloom", "qwen3_moe", *WITH_IMAGES)
LLAMA = Architecture("llama", "causal")


def test_a_subset_of_the_kinds_is_right_and_says_which_hidden_state_is_which_site() -> None:
    done = subprocess.run(
        [*COMMAND, "bench", "models", "--only", ",".join(SUBSET), "--json"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert report["transformers_right"] == len(SUBSET) and report["transformers_wrong"] == 0
    entries = {entry["name"]: entry for entry in report["architectures"]}
    assert set(entries) == set(SUBSET)
    for name in SUBSET:
        assert f"{name}: right" in done.stderr
        assert entries[name]["points"]["resid_post"]["right"] == 4
        begin = "layers.i.resid_post" if name == "mamba" else "embed · layers.i.resid_post"
        assert page.pattern_of(entries[name]).startswith(begin)
        assert entries[name]["cases"].get("image") == ("right" if name in WITH_IMAGES else None)
    assert {
        case: entries["llama"]["cases"][case] for case in ("plain", "left_padded", "generate", "chunked")
    } == dict.fromkeys(("plain", "left_padded", "generate", "chunked"), "right")


def test_an_unknown_architecture_is_refused_with_what_to_give() -> None:
    done = subprocess.run([*COMMAND, "bench", "models", "--only", "lama"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "no architecture of transformers is called 'lama'" in done.stderr.replace("\n", " ")


def spoiled(site: str, spoil: Callable[[Tensor], Tensor]) -> Callable[[RowStore, Step, str, Tensor], None]:
    """A `RowStore.put` whose rows of one site are spoiled."""
    put = RowStore.put

    def changed(self: RowStore, step: Step, name: str, rows: Tensor) -> None:
        put(self, step, name, spoil(rows) if name == site else rows)

    return changed


@pytest.mark.parametrize(
    "site", ["embed", "layers.1.resid_pre", "layers.2.resid_post", "final_norm", "layers.3.mlp_out"]
)
def test_a_row_that_is_off_by_a_thousandth_is_wrong(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowStore, "put", spoiled(site, lambda rows: rows + 1e-3 * rows.abs().max()))
    entry = examine(LLAMA)
    assert entry.verdict == "wrong"
    point = site.rpartition(".")[2]
    assert entry.points[point].wrong == 1
    assert "of the largest number" in entry.reason


def test_rows_of_the_wrong_part_are_wrong_although_the_sum_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """attn_out and mlp_out exchanged."""
    put, names = RowStore.put, {"layers.1.attn_out": "layers.1.mlp_out", "layers.1.mlp_out": "layers.1.attn_out"}

    def exchanged(self: RowStore, step: Step, name: str, rows: Tensor) -> None:
        put(self, step, names.get(name, name), rows)

    monkeypatch.setattr(RowStore, "put", exchanged)
    entry = examine(LLAMA)
    assert entry.verdict == "wrong"
    assert "changes with the block's MLP" in entry.reason


def test_rows_of_another_position_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowStore, "put", spoiled("layers.0.resid_post", lambda rows: rows.roll(1, 0)))
    assert examine(LLAMA).verdict == "wrong"


def test_rows_that_are_missing_without_a_word_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    put = RowStore.put
    monkeypatch.setattr(
        RowStore, "put", lambda self, step, name, rows: None if "post" in name else put(self, step, name, rows)
    )
    entry = examine(LLAMA)
    assert entry.verdict == "wrong"
    assert "no rows were delivered, and nothing says so" in entry.reason


def test_the_norms_and_biases_of_the_models_are_no_identities() -> None:
    """A norm that is left out of a row must show."""
    from actscope.bench.models.architectures import build

    for name, parameter in build(Architecture("gpt2", "causal")).named_parameters():
        if parameter.ndim == 1:
            assert float(parameter.std()) > 0.05, name
            assert not torch.equal(parameter, torch.ones_like(parameter)), name


def test_a_child_that_crashes_hangs_raises_or_takes_too_much_memory_is_told() -> None:
    def isolated(work: Callable[[], object]) -> object:
        return run_isolated(work, cpu_seconds=30, memory_bytes=1 << 28)

    assert isolated(lambda: {"a": [1]}) == {"a": [1]}
    with pytest.raises(ChildFailed, match="SIGKILL"):
        isolated(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ChildFailed, match="ZeroDivisionError"):
        isolated(lambda: 1 // 0)
    with pytest.raises(ChildFailed, match="MemoryError"):
        isolated(lambda: len(bytearray(1 << 31)))
    with pytest.raises(ChildFailed, match=r"took over 0\.3 s"):
        run_isolated(lambda: time.sleep(60), cpu_seconds=30, memory_bytes=1 << 28, wall_seconds=0.3)
    with pytest.raises(ChildFailed, match=r"took over 1 s of CPU time"):
        run_isolated(lambda: sum(iter(int, 1)), cpu_seconds=1, memory_bytes=1 << 28)


def test_a_wrong_architecture_fails_the_run_and_a_whole_run_needs_150_right_ones() -> None:
    right = [MatrixEntry(f"a{i}", "causal", verdict="right").to_json() for i in range(150)]
    wrong = MatrixEntry("b", "causal", verdict="wrong").to_json()
    assert all(result["ok"] for result in results(right, "transformers", whole=True))
    assert not all(result["ok"] for result in results(right[1:], "transformers", whole=True))
    assert all(result["ok"] for result in results(right[:1], "transformers", whole=False))
    assert not all(result["ok"] for result in results([*right, wrong], "transformers", whole=True))


def test_the_page_of_models_is_that_of_the_newest_result() -> None:
    newest = page.newest(ROOT / "bench/runs", "models")
    assert newest is not None
    of_vllm = page.newest(ROOT / "bench/runs", "models-vllm")
    vllm = json.loads(of_vllm.read_text()) if of_vllm else None
    written = page.page(json.loads(newest.read_text()), f"../{newest.relative_to(ROOT)}", vllm)
    assert (ROOT / "docs/models.md").read_text() == written


def test_hidden_states_of_right_architectures_are_the_sites_that_the_docs_say() -> None:
    """`hidden_states[0]` is embed, `[i]` is the stream behind block i - 1, and the last one is final_norm where there is one."""
    newest = page.newest(ROOT / "bench/runs", "models")
    assert newest is not None
    entries = [entry for entry in json.loads(newest.read_text())["architectures"] if entry["verdict"] == "right"]
    patterns = {entry["name"]: page.pattern_of(entry) for entry in entries if entry["kind"] == "causal"}
    plain = [name for name, pattern in patterns.items() if pattern.startswith("embed · layers.i.resid_post")]
    assert {"llama", "qwen3", "gemma2", "mistral", "gpt2", "phi3", "olmo2", "mixtral"} <= set(plain)
    assert len(plain) > 0.9 * len([pattern for pattern in patterns.values() if pattern])
