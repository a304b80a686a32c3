"""Rows and scores where vLLM runs otherwise: drafts, bfloat16, two ranks, an adapter, other sites, the compiled V2 runner."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines.vllm import mixed, reference
from engines.vllm.bed import Configuration, Offline
from engines.vllm.conftest import Engines, short_directory
from engines.vllm.models import LAYERS
from engines.vllm.test_rows import PROBES, recording_all
from safetensors.torch import load_file, save_file

from actscope.frames import RowFlag
from actscope.probes.score import activate
from actscope.taps.anatomy import hidden_of, resolve

#: bfloat16 has 8 bits of precision, and four layers add up their rounding.
BF16_TOLERANCE = 5e-2
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
    "v2 compiled": {"runner": "v2", "compile": "compiled"},
    "v1 two ranks": {"tensor_parallel": 2},
    "v2 two ranks": {"tensor_parallel": 2, "runner": "v2"},
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_and_scores_are_right_in_other_ways_to_run(way: str, run: Callable[..., mixed.Ran]) -> None:
    """The whole mixed run, of which one rank of two publishes."""
    ran = run(lambda driver: mixed.drive(driver, copies=16), **WAYS[way])
    check_everything(ran)
    assert sum(seen.having(RowFlag.RECOMPUTED).any() for seen in ran.seen.values()) >= 1


# --- drafts ---


def drive_drafts(driver: mixed.Driver) -> None:
    """Prompts that repeat themselves make n-grams that are found again; most of what follows them is wrong."""
    for n in range(6):
        stem = mixed.prompt(n, 6)
        driver.add(f"repeats-{n}", stem * 5 + stem[:3], max_tokens=24)
    driver.add("long", mixed.prompt(5, 9) * 20, max_tokens=12)
    driver.add("aborted", mixed.prompt(6, 5) * 4, max_tokens=60)
    driver.step(8)
    driver.abort("aborted")
    driver.drain()
    driver.add("long-again", mixed.prompt(5, 9) * 20, max_tokens=12)
    driver.drain()


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_drafts_in_vain_are_flagged_and_all_others_are_right(runner: str, run: Callable[..., mixed.Ran]) -> None:
    """N-gram speculation: the first rejected token of a pass is not the text's, and every accepted row is the reference's."""
    ran = run(drive_drafts, runner=runner, arguments={"speculative_config": NGRAM})
    check_everything(ran)
    rejected = {key: seen.rows[seen.having(RowFlag.REJECTED)] for key, seen in ran.seen.items()}
    accepted = [step for seen in ran.seen.values() for step in _steps_with_several_answers(seen.rows)]
    assert sum(map(len, rejected.values())) >= 10 and accepted, "a run without drafts proves nothing"
    for key, rows in rejected.items():
        if key in ran.texts:
            _, first = np.unique(rows["step"], return_index=True)
            ids = ran.texts[key].ids
            assert all(row["token_id"] != ids[row["position"]] for row in rows[first] if row["position"] < len(ids)), key


def _steps_with_several_answers(rows: np.ndarray) -> list[int]:
    """The steps in which more than one generated token of a request was accepted."""
    good = rows[rows["flags"] == 0]
    steps, n = np.unique(good["step"], return_counts=True)
    found: list[int] = steps[n > 1].tolist()
    return found


# --- bfloat16 ---


def test_bfloat16_rows_are_the_models_own_bits(run: Callable[..., mixed.Ran]) -> None:
    """Rows are bfloat16 numbers near the reference, and the scores are those of just these rows."""
    ran = run(lambda driver: mixed.drive(driver, copies=4), arguments={"dtype": "bfloat16"})
    mixed.check_labels(ran)
    mixed.check_recording(ran, BF16_TOLERANCE)
    assert ran.recording is not None
    for probe in PROBES:
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


# --- other sites ---

SITES = "embed,all.resid_pre,all.attn_out,all.mlp_out,all.resid_post,final_norm"


@cache
@torch.inference_mode()
def rows_at(path: Path, ids: tuple[int, ...]) -> dict[str, np.ndarray]:
    """fp32 [n, d] at every site of SITES, by forward hooks on transformers' model."""
    model, found, hooks = reference.load(path), {}, []
    for site, location in resolve(model, SITES).items():

        def take(module: Any, args: Any, kwargs: Any, output: Any = None, name: str = site.name) -> None:
            value = output if output is not None else (args[0] if args else kwargs["hidden_states"])
            found[name] = hidden_of(value)[0].clone().numpy()

        if location.side == "input":
            hooks.append(location.module.register_forward_pre_hook(take, with_kwargs=True))
        else:
            hooks.append(location.module.register_forward_hook(take, with_kwargs=True))
    try:
        model(torch.tensor([list(ids)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@pytest.mark.parametrize(("name", "way"), [("llama", "eager"), ("gemma2", "eager"), ("gpt2", "eager"), ("qwen3", "compiled")])
def test_every_kind_of_site_is_the_references(name: str, way: str, model: Model, run: Callable[..., mixed.Ran]) -> None:
    """Embedding, what goes into a block, what attention and MLP add, the stream behind it, the last norm."""

    def drive(driver: mixed.Driver) -> None:
        for n in (1, 20, 100):
            driver.add(f"r{n}", mixed.prompt(n, n), max_tokens=6)
        driver.drain()

    ran = run(drive, {"ACTSCOPE_ROW_SITES": SITES}, name, compile=way)
    assert ran.recording is not None and len(ran.recording.sites) == 4 * LAYERS + 2
    for site in ran.recording.sites:
        for n in (1, 20, 100):
            text = ran.texts[f"r{n}", 0]
            right = rows_at(model(name), text.ids)[site][: text.computed]
            rows = ran.recording.rows(site, request=f"r{n}").values
            assert rows.shape == right.shape
            assert np.abs(rows - right).max() <= mixed.ROW_TOLERANCE * np.abs(right).max(), site
