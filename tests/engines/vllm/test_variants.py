"""Rows and scores where vLLM runs otherwise: drafts, bfloat16, two ranks, an adapter, other sites, the compiled V2 runner."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.vllm.conftest import ALL
from engines.vllm.test_rows import PROBES, recording_all
from safetensors.torch import load_file, save_file
from support.vllm import mixed
from support.vllm.bed import Configuration, Offline
from support.vllm.pool import Engines, short_directory

from actscope.frames import RowFlag
from actscope.probes.score import activate

#: bfloat16 has 8 bits of precision, and wide random weights make more of each rounding; another token's row is off by 1 and more.
BF16_TOLERANCE = 0.25
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}

Model = Callable[[str], Path]


@pytest.fixture
def run(model: Model, engines: Engines) -> Iterator[Callable[..., mixed.Ran]]:
    """`run(drive, environment, name, runner=...)`: one engine, one run, everything recorded; ended with the test."""
    directory = short_directory()

    def one(
        drive: Callable[[mixed.Driver], None] = mixed.drive,
        environment: dict[str, str] | None = None,
        name: str = "llama",
        **way: Any,
    ) -> mixed.Ran:
        way["arguments"] = mixed.CROWDED | way.get("arguments", {})
        variables = recording_all(directory) | (environment or {})
        engine = engines.start(Offline, Configuration(model(name), environment=variables, **way))
        return mixed.run(engine, PROBES, directory / "record", drive)

    yield one
    engines.end()
    shutil.rmtree(directory, ignore_errors=True)


def check_everything(ran: mixed.Ran) -> None:
    mixed.check_labels(ran)
    mixed.check_tokens(ran)
    mixed.check_scores(ran, PROBES)
    mixed.check_recording(ran)


WAYS: dict[str, dict[str, Any]] = {
    "two ranks": {"tensor_parallel": 2},
    "v1 ahead": {"async_scheduling": True},
}
if ALL:
    WAYS["v2 compiled"] = {"runner": "v2", "compile": "compiled"}
    WAYS["v2 ahead"] = {"async_scheduling": True, "runner": "v2"}


@pytest.mark.parametrize("way", WAYS)
def test_rows_and_scores_are_right_in_other_ways_to_run(way: str, run: Callable[..., mixed.Ran]) -> None:
    """The whole mixed run: one rank of two publishes; "ahead", steps are scheduled before the last one's tokens are known."""
    ran = run(lambda driver: mixed.drive(driver, copies=16), **WAYS[way])
    check_everything(ran)
    assert sum(seen.having(RowFlag.RECOMPUTED).any() for seen in ran.seen.values()) >= 1


# --- drafts ---


def drive_drafts(driver: mixed.Driver) -> None:
    """Prompts that repeat themselves give drafts, most of them wrong; answers of two words only give some that are right."""
    for n in range(6):
        stem = mixed.prompt(n, 6)
        driver.add(f"repeats-{n}", stem * 5 + stem[:3], max_tokens=24)
        driver.add(f"few-{n}", stem * 3, max_tokens=24, allowed_token_ids=[n + 5, n + 6])
    driver.add("long", mixed.prompt(5, 9) * 20, max_tokens=12)
    driver.add("aborted", mixed.prompt(6, 5) * 4, max_tokens=60)
    driver.step(8)
    driver.abort("aborted")
    driver.drain()
    driver.add("long-again", mixed.prompt(5, 9) * 20, max_tokens=12)
    driver.drain()


def test_rejected_drafts_are_flagged_and_all_other_rows_are_right(run: Callable[..., mixed.Ran]) -> None:
    """N-gram speculation: the first rejected token of a pass is not the text's, and every accepted row is the reference's.

    V1 only: the V2 runner's n-gram kernel does not run in Triton's interpreter, with us or without.
    """
    ran = run(drive_drafts, arguments={"speculative_config": NGRAM})
    check_everything(ran)
    rejected = {key: seen.rows[seen.having(RowFlag.REJECTED)] for key, seen in ran.seen.items()}
    accepted = [step for seen in ran.seen.values() for step in _steps_with_several_answers(seen.rows)]
    assert sum(map(len, rejected.values())) >= 10 and accepted, "a run without drafts proves nothing"
    for key, rows in rejected.items():
        if key in ran.texts:
            _, first = np.unique(rows["step"], return_index=True)
            ids = ran.texts[key].ids
            assert all(row["token_id"] != ids[row["position"]] for row in rows[first] if row["position"] < len(ids)), (
                key
            )


def _steps_with_several_answers(rows: np.ndarray) -> list[int]:
    """The steps in which more than one generated token of a request was accepted."""
    good = rows[rows["flags"] == 0]
    steps, n = np.unique(good["step"], return_counts=True)
    found: list[int] = steps[n > 1].tolist()
    return found


# --- bfloat16 ---


def test_bfloat16_rows_are_the_models_own_bits(run: Callable[..., mixed.Ran]) -> None:
    """Rows are bfloat16 numbers near the reference, and the scores are those of just these rows."""
    ran = run(
        lambda driver: mixed.drive(driver, copies=4),
        environment={"ACTSCOPE_ROW_SITES": "all"},
        arguments={"dtype": "bfloat16"},
    )
    mixed.check_labels(ran)
    mixed.check_recording(ran, BF16_TOLERANCE)
    assert ran.recording is not None
    for probe in PROBES:
        if probe.info.site not in mixed.STREAM:
            continue
        rows = ran.recording.rows(probe.info.site, request="long").values
        assert not (rows.view(np.uint32) & 0xFFFF).any()
        seen = ran.seen["long", 0]
        computed = seen.scores[~seen.having(RowFlag.RECOMPUTED)]
        z = rows @ probe.weight + np.float32(probe.info.bias)
        if probe.info.activation != "jumprelu":
            np.testing.assert_allclose(
                computed[:, ran.columns[probe.id]], activate(z, probe.info.activation), rtol=1e-4, atol=1e-4
            )


# --- an adapter ---


def merged(base: Path, adapter: Path, into: Path) -> Path:
    """The base model with the adapter's products added to its weights."""
    path = into / "merged"
    if not path.exists():
        shutil.copytree(base, path)
        weights, change = load_file(path / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
        for name in [name for name in change if name.endswith("lora_A.weight")]:
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            weights[target] += change[name.replace("lora_A", "lora_B")] @ change[name] * (32 / 8)
        save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def test_rows_of_an_adapters_requests_are_those_of_the_merged_model(
    model: Model, adapter: Path, bed_directory: Path, run: Callable[..., mixed.Ran]
) -> None:
    """In one batch with requests without an adapter; a prompt in the prefix cache of one is none for the other."""

    def drive(driver: mixed.Driver) -> None:
        for again in ("", "-again"):
            for n in (5, 33, 80):
                driver.add(f"plain-{n}{again}", mixed.prompt(n, n), max_tokens=6)
                driver.add(f"adapted-{n}{again}", mixed.prompt(n, n), lora=adapter, max_tokens=6)
            driver.drain()

    ran = run(drive, arguments={"enable_lora": True, "max_lora_rank": 8, "max_loras": 2, "num_gpu_blocks_override": 64})
    assert ran.seen["adapted-80-again", 0].having(RowFlag.CACHED).sum() == 64
    changed = merged(model("llama"), adapter, bed_directory)
    texts = {True: {}, False: {}}  # type: dict[bool, dict[tuple[str, int], mixed.Text]]
    for key, text in ran.texts.items():
        texts[key[0].startswith("adapted")][key] = text
    check_everything(replace(ran, texts=texts[False]))
    check_everything(replace(ran, texts=texts[True], model=changed))
    assert ran.texts["plain-80", 0].answer != ran.texts["adapted-80", 0].answer
    assert ran.recording is not None
    noted = {mark.request for mark in ran.recording.marks if mark.why == "adapter adapter"}
    assert noted == {key for key, _ in ran.texts if key.startswith("adapted")}, "who computed what is in the recording"
