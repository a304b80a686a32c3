"""`actscope bench soak`: a long capture of the built-in model at every layer. Checks that memory is steady and no row is lost.

The recording is verified at the end: every token that the model computed must have its row at every site, and a sample of
requests is computed again by the bare model and compared.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BatchEncoding

from actscope.bench.support.samples import Result
from actscope.capture.session import Capture, capture
from actscope.engines import builtin
from actscope.engines.hf.loading import LoadedModel, load
from actscope.recording.reading.recording import Recording
from actscope.recording.writing.recorder import RecorderStats

Progress = Callable[[str], None]

PROMPTS = (
    "Tell me about a fox",
    "Where did the old boat go",
    "Count to five",
    "What is in the river",
    "Say a kind word",
)
#: Tolerated growth of memory in MiB after the first tenth, for allocators and the page tables of a growing file.
STEADY_MB = 64.0
_CHECKED = 20
_SEGMENT = 64 << 20


@dataclass(slots=True)
class SoakRun:
    """Measurements during the capture."""

    computed: int = 0  # real positions that the model saw
    rss_mb: list[tuple[float, float]] = field(default_factory=list)  # (seconds, MiB)
    requests: int = 0


def run(seconds: float, progress: Progress, folder: Path | None = None) -> list[Result]:
    """Capture for `seconds`, then read everything back and verify it."""
    torch.set_num_threads(1)  # such a small model gains nothing from more threads, and the codecs need a core
    loaded = load(builtin.NAME)
    with tempfile.TemporaryDirectory(prefix=".actscope-soak-", dir=folder or Path.cwd()) as home:
        path = Path(home) / "soak.acts"
        seen = _capture_for(loaded, path, seconds, progress)
        found = Recording.open(path)
        lost, stored = _lost_rows(found, seen, progress), sum(found[site].sizes().stored for site in found.sites)
        wrong = _wrong_rows(loaded, found, progress)
    growth = _growth(seen, seconds)
    bare = "none: an absolute figure"
    return [
        _result("lost_rows", lost, "rows", f"{seen.computed} positions at {len(found.sites)} sites", bar=0),
        _result("wrong_rows", wrong, "rows", f"{_CHECKED} requests computed again by the bare model", bar=0),
        _result("rss_growth_mb", growth, "MiB", "peak after the first tenth, over the median of the second", bar=STEADY_MB),
        _result("tokens", seen.computed, "tokens", bare),
        _result("stored_mb", stored / (1 << 20), "MiB", bare),
        _result("seconds", seen.rss_mb[-1][0], "s", bare),
    ]  # fmt: skip


def _capture_for(loaded: LoadedModel, path: Path, seconds: float, progress: Progress) -> SoakRun:
    seen, chance, model = SoakRun(), random.Random(0), loaded.model
    counting = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: setattr(seen, "computed", seen.computed + args[0].numel())
    )
    try:
        with capture(
            model, "balanced", path, tokenizer=loaded.tokenizer, segment_bytes=_SEGMENT, memory_bytes=256 << 20
        ) as session:
            begin = time.monotonic()
            while (elapsed := time.monotonic() - begin) < seconds:
                _generate(loaded, chance)
                seen.requests += 1
                _note(seen, session, elapsed, progress)
    finally:
        counting.remove()
    return seen


def _generate(loaded: LoadedModel, chance: random.Random) -> None:
    """Run one request without padding, so that the recording must have exactly the positions that the embedding gets."""
    chat = [{"role": "user", "content": chance.choice(PROMPTS)}]
    read = loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert isinstance(read, BatchEncoding)
    ids = read["input_ids"]
    with torch.inference_mode():
        loaded.model.generate(  # type: ignore[operator]  # transformers does not type it
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=chance.randint(8, 120), do_sample=True,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )  # fmt: skip


def _note(seen: SoakRun, session: Capture, elapsed: float, progress: Progress) -> None:
    if seen.rss_mb and elapsed - seen.rss_mb[-1][0] < 1.0:
        return
    seen.rss_mb.append((elapsed, _rss_mb()))
    stats = session.stats()
    assert isinstance(stats.recorder, RecorderStats)
    progress(
        f"{elapsed:.0f} s, {seen.computed} tokens, {seen.rss_mb[-1][1]:.0f} MiB of memory, "
        f"{stats.recorder.durable_rows} rows durable, {stats.recorder.dropped_rows} dropped"
    )


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def _growth(seen: SoakRun, seconds: float) -> float:
    """Return how far the peak after the first tenth exceeds the median of the second tenth, in MiB."""
    settled = [mb for at, mb in seen.rss_mb if at >= 0.1 * seconds] or [seen.rss_mb[-1][1]]
    second = [mb for at, mb in seen.rss_mb if 0.1 * seconds <= at <= 0.2 * seconds] or settled[:1]
    return max(settled) - float(np.median(second))


def _lost_rows(found: Recording, seen: SoakRun, progress: Progress) -> int:
    """Count missing and non-finite rows. Every row is decoded."""
    lost = 0
    for site in found.sites:
        progress(f"reading {site}")
        finite = sum(int(np.isfinite(rows.values).all(axis=1).sum()) for rows in found.iter_rows(site))
        lost += seen.computed - finite
    return lost


def _wrong_rows(loaded: LoadedModel, found: Recording, progress: Progress) -> int:
    """Count the rows of some requests that differ from the bare model's by more than 2e-3 of their norm."""
    wrong = 0
    chosen = random.Random(1).sample(found.requests, min(_CHECKED, len(found.requests)))
    for number, request in enumerate(chosen):
        progress(f"computing request {number + 1} of {len(chosen)} again")
        ids = found.rows(found.sites[0], request).labels["token_id"].astype(np.int64)
        with torch.inference_mode():
            hidden = _blocks_of(loaded.model, torch.from_numpy(ids)[None])
        for site in found.sites:
            layer = int(site.split(".")[1])
            want, have = hidden[layer].numpy(), found.rows(site, request).values
            error = np.linalg.norm(have - want, axis=1) / np.linalg.norm(want, axis=1)
            wrong += int((error > 2e-3).sum())
    return wrong


def _blocks_of(model: nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return each block's output, float32 [n, d], captured by plain hooks."""
    from actscope.taps.anatomy import hidden_of
    from actscope.taps.text_model import blocks

    outputs: list[torch.Tensor] = []
    hooks = [
        b.register_forward_hook(lambda m, a, out: outputs.append(hidden_of(out)[0].float())) for b in blocks(model)
    ]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _result(name: str, value: float, unit: str, baseline: str, *, bar: float | None = None) -> Result:
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "runs": 1,
        "min": value, "max": value, "bar": bar, "ok": bar is None or value <= bar,
    }  # fmt: skip
