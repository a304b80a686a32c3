"""`actscope bench sae`: an SAE trained on rows of our feed, against the same one trained on SAELens's own ActivationsStore.

SAELens's trainer trains both, from the same initial weights and with the same hyperparameters, on layer 2 of the built-in
model over the same texts; only the data provider differs. Each of two rounds has its own seed and order. The feed begins with
an empty buffer, and is idle while the other one trains. Both are evaluated on rows of held-out texts. More seconds mean more
rows: 20 give a rough SAE, 120 one worth inspecting.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from actscope.bench.support import saelens
from actscope.bench.support.feed_servers import Feed, feed, settle
from actscope.bench.support.samples import Progress, Result, Samples, result
from actscope.engines import builtin
from actscope.errors import MissingExtra
from actscope.extraction.cutting import Cutter, tokenizer_of
from actscope.extraction.opening import open_reader
from actscope.extraction.texts import open_texts
from actscope.feed.client.client import FeedClient

if TYPE_CHECKING:
    from sae_lens import TopKTrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

LAYER, CONTEXT, BATCH = 2, 128, 1024
WIDTH, FEATURES, ACTIVE = 256, 2048, 16
#: Rows of training per side, over all rounds, for each second of the run.
ROWS_PER_SECOND = 4096
_ROUNDS, _BUFFER = 2, 16384
_ROWS_PER_TEXT = 40  # fewer than there are, so that no text is repeated
_JUDGED_TEXTS = 200


@dataclass(frozen=True, slots=True)
class Judgement:
    """Evaluation on held-out rows. `dead` is the number of features that no row activates."""

    explained_variance: float
    l0: float
    dead: int


def run(seconds: float, progress: Progress) -> list[Result]:
    """Train both in about `seconds` plus the time to start. Raises MissingExtra if sae-lens is not installed."""
    if not saelens.installed():
        raise MissingExtra("peers", "sae-lens")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    rows = max(2, round(seconds * ROWS_PER_SECOND / BATCH / _ROUNDS)) * BATCH
    texts = _ROUNDS * rows // _ROWS_PER_TEXT
    progress("extracting held-out rows")
    judged, samples = heldout_rows(), Samples()
    progress("starting both")
    with feed(sites=LAYER, context=CONTEXT, buffer_rows=_BUFFER, texts=texts) as running, saelens.quiet():
        model, read = saelens.open_model(LAYER), saelens.texts(texts)
        store = saelens.open_store(model, read, layer=LAYER, context=CONTEXT, batch=BATCH)
        for seed in range(_ROUNDS):
            for name in ("feed", "saelens") if seed % 2 == 0 else ("saelens", "feed"):
                progress(f"training {seed + 1} of {_ROUNDS} on {rows} rows: {name}")
                with _rows_of(name, running, store) as provider:
                    _train(samples, name, provider, rows, judged, seed)
    return _results(samples, rows, len(judged))


@contextmanager
def _rows_of(name: str, running: Feed, store: Iterator[Tensor]) -> Iterator[Iterator[Tensor]]:
    """Provide a trainer's rows. The feed's generator is idle while the other side trains, and starts with an empty buffer."""
    with FeedClient(running.url, running.token) as client:
        settle(client)
        if name == "saelens":
            yield store
        else:
            client.refresh()
            with closing(cast(Generator[Tensor, None, None], client.iter(BATCH))) as batches:
                yield batches


def heldout_rows() -> Tensor:
    """Return rows of the held-out split, which the feed does not read, [n, WIDTH]."""
    texts = open_texts("builtin", split="heldout", n=_JUDGED_TEXTS)
    cutter = Cutter(tokenizer_of(builtin.NAME), context=CONTEXT)
    reader = open_reader("hf", builtin.NAME, str(LAYER), context=CONTEXT)
    pieces = cutter.cut(range(len(texts)), texts.read(range(len(texts))))
    [rows] = reader.read(pieces).values.values()
    return rows


def new_sae(seed: int) -> TopKTrainingSAE:
    """Create a TopK SAE of SAELens, with the same initial weights for the same seed."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    torch.manual_seed(seed)
    return TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=WIDTH, d_sae=FEATURES, k=ACTIVE, device="cpu", normalize_activations="expected_average_only_in"
        )
    )


def trainer_of(sae: TopKTrainingSAE, provider: Iterator[Tensor], rows: int) -> SAETrainer:
    """Create SAELens's trainer."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    numbers = SAETrainerConfig(
        total_training_samples=rows,
        train_batch_size_samples=BATCH,
        lr=2e-3,
        lr_end=2e-4,
        lr_warm_up_steps=rows // BATCH // 20,
        lr_decay_steps=rows // BATCH // 5,
        n_batches_for_norm_estimate=8,
    )
    return SAETrainer(numbers, sae, data_provider=provider)


def _train(samples: Samples, name: str, provider: Iterator[Tensor], rows: int, judged: Tensor, seed: int) -> None:
    trainer = trainer_of(new_sae(seed), provider, rows)
    begin = time.perf_counter()
    sae = trainer.fit()
    samples.add(f"{name}_train_s", time.perf_counter() - begin)
    found = judge(sae, judged)
    samples.add(f"{name}_explained_variance", found.explained_variance)
    samples.add(f"{name}_l0", found.l0)
    samples.add(f"{name}_dead_features", found.dead)


@torch.inference_mode()
def judge(sae: TopKTrainingSAE, rows: Tensor) -> Judgement:
    """Evaluate an SAE on unscaled rows [n, WIDTH]: when training ends, the trainer folds its scale into the weights."""
    active = sae.encode(rows)
    lost = (rows - sae.decode(active)).square().sum()
    there = (rows - rows.mean(0)).square().sum()
    fired = active > 0
    return Judgement(float(1 - lost / there), float(fired.sum(1).float().mean()), int((~fired.any(0)).sum()))


def _results(samples: Samples, rows: int, judged: int) -> list[Result]:
    units = {"train_s": "s", "explained_variance": "", "l0": "features", "dead_features": "features"}
    where = f"{rows} rows of training, {judged} held out"
    sides = {"feed": "our feed", "saelens": "SAELens's ActivationsStore"}
    found = [
        result(f"{name}_{what}", samples.of[f"{name}_{what}"], unit, f"{side}; {where}")
        for what, unit in units.items()
        for name, side in sides.items()
    ]
    faster = samples.ratios("saelens_train_s", "feed_train_s")
    return [result("train_speed_ratio", faster, "x", "the same training on SAELens's ActivationsStore"), *found]
