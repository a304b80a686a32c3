"""Runs one tiny model with stock vLLM and the plugin, under mixed load, and reads the recording that the plugin made."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from actscope.bench.models.configs import VOCABULARY
from actscope.bench.models.isolated import run_isolated
from actscope.bench.models.rows import Row, RowStore, warnings_of_product
from actscope.errors import ActscopeError
from actscope.recording.reading.recording import Recording

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

#: Selections of sites, tried in this order until the plugin takes one.
SELECTIONS = (
    "embed,all.resid_pre,all.attn_out,all.mixer_out,all.mlp_out,all.resid_post,final_norm",
    "embed,all.resid_pre,all.resid_post,final_norm",
    "all.resid_post",
)
#: Lengths of the prompts: with passes of 32 tokens they are cut into chunks and share passes. The last repeats the longest.
_LENGTHS, _BATCH_TOKENS, NEW = (3, 9, 20, 37, 50, 50), 32, 5
_STARTING_S, _CLOSING_S = 120.0, 90.0
#: Limits of the process that runs vLLM.
_CPU_SECONDS, _MEMORY_BYTES = 150.0, 24 << 30
#: Options of the engine. Its rotary kernel on a CPU turns queries of three dimensions wrongly (LFM2, latent attention).
_ENGINE: dict[str, object] = {
    "max_model_len": 128, "max_num_seqs": 8, "max_num_batched_tokens": _BATCH_TOKENS, "block_size": 32,
    "kv_cache_memory_bytes": 32 << 20, "enforce_eager": True, "skip_tokenizer_init": True, "disable_log_stats": True,
    "language_model_only": True, "compilation_config": {"custom_ops": ["-rotary_embedding"]},
}  # fmt: skip


@dataclass(slots=True)
class VllmRun:
    """Texts by request (prompt and answer), the recorded rows, and what the plugin said."""

    texts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rows: RowStore = field(default_factory=RowStore)
    said: list[str] = field(default_factory=list)


def offer_torchvision() -> None:
    """Let vLLM's model files with a vision part import torchvision, if it lies in the folder `vision` of the environment.

    Its wheel is built for another torch than that of vLLM on a CPU: its operators do not load, and its import fails because they
    are absent. Two of them are declared here, without code. The rest of it is Python. Call it before transformers is imported.
    """
    path = Path(sys.prefix) / "vision"
    if not path.is_dir() or "torchvision" in sys.modules or str(path) in sys.path:
        return
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.path.append(str(path))


def prompts() -> list[list[int]]:
    """Return the prompts, seeded."""
    texts = []
    for n in _LENGTHS:
        generator = torch.Generator().manual_seed(n)
        texts.append(torch.randint(3, VOCABULARY - 28, (n,), generator=generator).tolist())
    return texts


def run(model: Path, selection: str, directory: Path, dtype: str) -> VllmRun:
    """Generate from all prompts at once, with every row of the selection recorded; without the plugin if it is "".

    vLLM runs in a forked child, because its Transformers backend changes classes of transformers, which the reference needs as
    they are. Raises ChildFailed if vLLM cannot run the model.
    """
    answer = run_isolated(
        lambda: _serve(model, selection, directory, dtype), cpu_seconds=_CPU_SECONDS, memory_bytes=_MEMORY_BYTES
    )
    found = VllmRun(said=answer["said"])  # type: ignore[index]
    found.texts = {name: tuple(ids) for name, ids in answer["texts"].items()}  # type: ignore[index]
    if selection and (directory / "record").exists():
        _read(directory / "record", found)
    return found


def _serve(model: Path, selection: str, directory: Path, dtype: str) -> dict[str, object]:
    """Run vLLM, and return its texts and what the plugin said. Sets variables for both."""
    found = VllmRun()
    if selection:
        _environment(selection, directory)
    else:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm import LLM

    _register(model)
    with warnings_of_product(found.said):
        llm = LLM(model=str(model), dtype=dtype, **_ENGINE)
        try:
            if selection:
                _wait_for_sidecar(directory / "run", found.said)
            _generate(llm.llm_engine, found)
        finally:
            llm.llm_engine.engine_core.shutdown()
    return {"texts": found.texts, "said": found.said}


def _environment(selection: str, directory: Path) -> None:
    (directory / "run").mkdir(mode=0o700)
    os.environ.update(
        {
            "ACTSCOPE_SITES": selection, "ACTSCOPE_ROW_SITES": selection, "ACTSCOPE_RECORD": str(directory / "record"),
            "ACTSCOPE_SAMPLE": "1", "ACTSCOPE_CODEC": "none", "ACTSCOPE_FLIGHT_GB": "0.1", "ACTSCOPE_BUFFER_GB": "0.2",
            "ACTSCOPE_RUNTIME_DIR": str(directory / "run"), "VLLM_CACHE_ROOT": str(directory / "cache"),
        }
    )  # fmt: skip


def _register(model: Path) -> None:
    """Give vLLM the model's class itself, so that it does not start a process of its own to inspect it."""
    from vllm.model_executor.models import ModelRegistry

    for name in json.loads((model / "config.json").read_text())["architectures"]:
        if name in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _wait_for_sidecar(runtime: Path, said: Sequence[str]) -> None:
    """Wait until the plugin's engine card is published. Without a plugin that watches the engine there will be none."""
    until = time.monotonic() + _STARTING_S
    while (
        time.monotonic() < until
        and not list(runtime.glob("engine-*.json"))
        and not any("is off" in text for text in said)
    ):
        time.sleep(0.05)


def _generate(engine: LLMEngine, found: VllmRun) -> None:
    from vllm import SamplingParams

    texts = prompts()
    params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    begun: list[tuple[str, list[int]]] = []
    for number, text in enumerate(texts):
        if number == len(texts) - 1:  # it repeats a prompt whose blocks are in the prefix cache by then
            _drain(engine, found, begun)
        name = f"m{number}"
        engine.add_request(name, {"prompt_token_ids": text}, params)
        begun.append((name, text))
    _drain(engine, found, begun)


def _drain(engine: LLMEngine, found: VllmRun, begun: Sequence[tuple[str, list[int]]]) -> None:
    known = dict(begun)
    while engine.has_unfinished_requests():
        for output in engine.step():
            found.texts[output.request_id] = (*known[output.request_id], *output.outputs[0].token_ids)


def _finished(directory: Path) -> Recording:
    """Open the recording once the sidecar has closed it. Raises RecordingError if it has not after a while."""
    until = time.monotonic() + _CLOSING_S
    while time.monotonic() < until:
        with suppress(ActscopeError):
            found = Recording.open(directory)
            if found.complete:
                return found
        time.sleep(0.1)
    return Recording.open(directory)


def _read(directory: Path, found: VllmRun) -> None:
    """Read the recording, by the request's own name, site and position."""
    recording = _finished(directory)
    for request in recording.requests:
        name = request.rpartition("-")[0] or request  # vLLM appends eight digits
        for site in recording.sites:
            rows = recording.rows(site, request)
            labels = zip(rows.labels["position"].tolist(), rows.labels["token_id"].tolist(), strict=True)
            for (position, token), values in zip(labels, torch.as_tensor(rows.values), strict=True):
                found.rows.of[name][site][position] = Row(token, values)
