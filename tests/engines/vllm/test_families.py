"""Rows of many architectures in real vLLM, against plain hooks of transformers on the same weights and ids."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engines.vllm.conftest import ALL
from support.vllm.bed import Configuration
from support.vllm.models import LAYERS
from support.vllm.pool import Engines, short_directory

POINTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
SITES = ",".join(["embed", *(f"all.{point}" for point in POINTS), "final_norm"])
#: As in `mixed`: the largest difference from the reference, as a share of the reference's largest number.
TOLERANCE = 1e-4
#: All of whose points are right, one of each kind; the last two run on vLLM's Transformers backend.
RIGHT: tuple[str, ...] = (
    "stablelm",
    "cohere",
    "glm4",
    "granite",
    "falcon",
    "olmo",
    "smollm3",
)
COMPILED: tuple[str, ...] = ("stablelm", "smollm3")
#: Models on two ranks: whose points are all right there, and whose blocks add partial sums.
WHOLE, PARTIAL = ("stablelm",) if ALL else (), ("falcon", "cohere") if ALL else ("falcon",)
if ALL:
    RIGHT = (
        *RIGHT,
        "gpt_neox",
        "phi",
        "starcoder2",
        "llama",
        "gemma2",
        "gemma3",
        "olmo2",
        "phi3",
        "qwen3_moe",
        "mixtral",
        "gptj",
        "nemotron",
        "olmoe",
    )
    COMPILED = (*COMPILED, "cohere", "olmo")

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(bed_directory: Path, engines: Engines) -> Found:
    """What `rows_of` says of each model and way to run, all from one process."""
    engines.end()
    eager = {name: {"arguments": {"enforce_eager": True}} for name in RIGHT}
    compiled = {f"{name} compiled": {"model": name} for name in COMPILED}
    ranks = {f"{name} on two ranks": {"model": name, **TWO_RANKS} for name in (*WHOLE, *PARTIAL)}
    reading = {"a reader": {"model": "stablelm", "sites": "0,1.mixer_out", "reader": True}}
    jobs = eager | compiled | ranks | reading
    return run({name: {"sites": SITES, **job} for name, job in jobs.items()}, bed_directory)


TWO_RANKS = {
    "arguments": {"enforce_eager": True, "tensor_parallel_size": 2},
    "environment": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
}


def run(jobs: dict[str, dict[str, Any]], bed_directory: Path) -> Found:
    directory = short_directory()
    way = Configuration(directory, environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_AOT_COMPILE": "0"})
    variables = way.variables(directory, bed_directory / "cache") | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    for name in ("run", "xdg-run"):
        (directory / name).mkdir(mode=0o700)
    models = bed_directory / "families"
    models.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "support.vllm.rows_of", str(models), json.dumps(jobs)]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}


def check(one: dict[str, Any], refused: set[str], message: str = "") -> None:
    """Everything that is not refused is right, and nothing else is refused."""
    assert "error" not in one, one["error"]
    assert set(one["refused"]) == refused and all(message in why for why in one["refused"].values()), one["refused"]
    expected = {"embed", "final_norm", *(f"layers.{i}.{point}" for i in range(LAYERS) for point in POINTS)} - refused
    assert set(one["off"]) == expected and not one["unknown"]
    wrong = {site: off for site, off in one["off"].items() if off > TOLERANCE}
    assert not wrong, wrong
    assert all(off <= TOLERANCE for off in one["sums"].values()), one["sums"]


def of(*points: str) -> set[str]:
    return {f"layers.{i}.{point}" for i in range(LAYERS) for point in points}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [*RIGHT, *(f"{name} compiled" for name in COMPILED), *(f"{name} on two ranks" for name in WHOLE)]
)
def test_every_point_is_that_of_transformers(name: str, found: Found) -> None:
    """The stream before and behind each block, what attention and MLP add, the embedding and the final norm's output."""
    check(found[name], set())


@pytest.mark.timeout(900)
def test_a_reader_does_not_start_with_a_site_that_is_refused(found: Found) -> None:
    """So no harvest and no feed has rows of it, and both say which site, and why."""
    error = found["a reader"]["error"]
    assert re.match(
        r"SiteError: StableLmForCausalLM: layers\.1\.mixer_out: no output of one module of \w+, which adds", error, re.I
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PARTIAL)
def test_partial_sums_of_ranks_are_refused(name: str, found: Found) -> None:
    """Parallel blocks add their attention and MLP before the all-reduce: on two ranks neither is a summand. Streams are right."""
    check(found[f"{name} on two ranks"], of("attn_out", "mlp_out"), "partial sum")
