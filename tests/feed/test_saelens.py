"""SAELens's trainer takes its rows from a feed, as they come: `SAETrainer(cfg, sae, data_provider=client.iter(...))`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.feed.feeding import Feeding, feeding
from torch import Tensor

from actscope.feed import FeedClient

with warnings.catch_warnings():  # TransformerLens warns of its own modules while it is imported
    warnings.simplefilter("ignore")
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

BATCH = 256


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feeding]:
    """An endless feed of rows in bfloat16, which are not the SAE's own dtype."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        with feeding(dtype="bfloat16") as running:
            yield running


def new_sae(normalize: str) -> Any:
    torch.manual_seed(0)
    config = sae_lens.TopKTrainingSAEConfig(d_in=256, d_sae=512, k=16, normalize_activations=normalize)
    return sae_lens.TopKTrainingSAE(config)


def train(sae: Any, provider: Iterator[Tensor], batches: int) -> Any:
    numbers = SAETrainerConfig(
        total_training_samples=batches * BATCH,
        train_batch_size_samples=BATCH,
        lr=2e-3,
        lr_end=2e-4,
        n_batches_for_norm_estimate=4,
    )
    return SAETrainer(numbers, sae, data_provider=provider).fit()


@torch.inference_mode()
def explained_variance(sae: Any, rows: Tensor) -> float:
    lost = (rows - sae.decode(sae.encode(rows))).square().sum()
    return float(1 - lost / (rows - rows.mean(0)).square().sum())


def fresh_rows(client: FeedClient) -> Tensor:
    """Rows that come after those of the training."""
    return client.get_activations_tensor(2 * BATCH).float()


def test_an_sae_learns_from_rows_as_they_come(bf16: Feeding) -> None:
    """The trainer measures the scale itself, and folds it in: the SAE explains the model's own rows that it has not seen."""
    sae = new_sae("expected_average_only_in")
    with bf16.client() as client:
        before = explained_variance(sae, fresh_rows(client))
        train(sae, client.iter(BATCH), 60)
        rows = fresh_rows(client)
    assert before < 0.2 and explained_variance(sae, rows) > 0.5
    assert sae.cfg.normalize_activations == "none"


def test_an_sae_of_normalised_rows_reads_the_models_own(bf16: Feeding) -> None:
    """`normalize` takes a scale that is kept: rows need not be spent on measuring it, and it is what is folded in at the end."""
    sae = new_sae("none")
    with bf16.client() as client:
        client.wait_for_data(BATCH)
        scale = client.get_stats()["sites"]["layers.2.resid_post"]["norm_scale"]
        assert scale is not None
        train(sae, client.iter(BATCH, normalize=scale), 60)
        rows = fresh_rows(client)
    assert explained_variance(sae, rows * scale) > 0.5
    sae.fold_activation_norm_scaling_factor(scale)
    assert explained_variance(sae, rows) > 0.5


def test_a_trainer_does_not_write_to_its_batches(bf16: Feeding) -> None:
    """So that it can be given views of the feed's own memory, which are read-only: to write to one would end the process."""
    sae = new_sae("none")
    start = sae.W_enc.detach().clone()
    with bf16.client() as client:
        provider = client.iter(BATCH, zero_copy=True)
        train(sae, provider, 3)
        provider.close()  # type: ignore[attr-defined]  # a generator's
    assert not torch.equal(sae.W_enc, start)
