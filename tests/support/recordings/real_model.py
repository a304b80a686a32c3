"""Recordings of real rows: a tiny model runs in the test's own process, and what it computed is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from support.hf.harness import Harness
from support.hf.tiny import byte_tokenizer, tiny

from actscope.frames import SCORES, Frame, Step
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder
from actscope.sites import select

PROMPTS = {
    "story": "Once there was a fox who lived in the snow.",
    "talk/1": "What is a wolf?",
    "long": "The river ran past the mill and the mill ran past the river. " * 3,
}


@dataclass(frozen=True)
class Truth:
    """The steps that were recorded, and each site's rows in their order as tensors."""

    steps: list[tuple[Step, list[Frame]]]
    sites: tuple[str, ...]

    def rows(self, site: str) -> torch.Tensor:
        return torch.cat([torch.as_tensor(f.rows) for _, frames in self.steps for f in frames if f.site == site])

    def meta(self, column: str) -> np.ndarray:
        return np.concatenate([step.meta[column] for step, _ in self.steps])

    def requests(self) -> list[str]:
        return [span.request for step, _ in self.steps for span in step.spans for _ in range(span.n_rows)]


def run_model(
    architecture: str = "llama", dtype: torch.dtype = torch.float32, sites: str = "all", max_tokens: int = 24
) -> Truth:
    """Some requests at once; the rows that the engine published at these sites."""
    loaded = tiny(architecture, dtype)
    chosen = select(sites, 4)
    prompts = {name: list(text.encode()) for name, text in PROMPTS.items()}
    with Harness(loaded) as run:
        run.engine.keep_rows(chosen).result()
        run.run(prompts, max_tokens=max_tokens)
    steps = [(step, [f for f in frames if f.site != SCORES]) for step, frames in run.sink.steps]
    return Truth(steps, tuple(site.name for site in chosen))


def record(truth: Truth, path: Path, codec: str = "shuffle_zstd", **model: object) -> Path:
    """Record what has been run."""
    facts = {"name": "tiny/llama", "revision": "", "n_layers": 4, "d_model": 64, **model}
    spec = RecordingSpec(truth.sites, codec=codec, model=facts)
    tokenizer = byte_tokenizer()
    with Recorder.create(path, spec, PipelineOptions(block_bytes=1 << 14)) as recorder:
        recorder.texts = lambda ids: [str(tokenizer.decode([i])) for i in ids]
        for step, frames in truth.steps:
            recorder.write(step, [Frame(f.site, torch.as_tensor(f.rows).clone()) for f in frames])
    return path
