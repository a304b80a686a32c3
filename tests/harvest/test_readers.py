"""Harvests open in the tools that people have: datasets, SAELens' activations store and its trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.harvest.workers import crew, quiet
from transformers import AutoModelForCausalLM

from actscope.engines import builtin
from actscope.extraction.cutting import Cutter, tokenizer_of
from actscope.extraction.texts import open_texts
from actscope.harvest import open_harvest
from actscope.harvest.driver import harvest
from actscope.harvest.storage import open_storage

HOOK = "blocks.0.hook_resid_post"

with warnings.catch_warnings():  # TransformerLens warns of its own modules while it is imported
    warnings.simplefilter("ignore")
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences
    from sae_lens.training.activations_store import ActivationsStore

import datasets  # noqa: E402


@pytest.fixture(scope="module")
def arrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arrow")
    harvest(open_storage(str(out)), crew(out, format="arrow", context=32), quiet)
    return out


def states(ids: Any) -> torch.Tensor:
    """What the first block computes for these contexts, by transformers itself."""
    model = AutoModelForCausalLM.from_pretrained(builtin.model_path(), dtype=torch.float32)
    with torch.no_grad():
        return cast(torch.Tensor, model.model(torch.as_tensor(ids).long(), output_hidden_states=True).hidden_states[1])


def test_datasets_opens_the_place(arrow: Path) -> None:
    """load_from_disk gives one row a context, whose activations are the model's for exactly these token ids."""
    found = datasets.load_from_disk(str(arrow)).with_format("torch")
    manifest = open_harvest(arrow).manifest
    assert len(found) * 32 == manifest.rows and found.column_names == [
        HOOK, "blocks.4.hook_resid_post", "token_ids", "text_ids",
    ]  # fmt: skip
    torch.testing.assert_close(found[:5][HOOK], states(found[:5]["token_ids"]), rtol=1e-4, atol=1e-4)


def test_contexts_are_packed_as_saelens_packs_them(arrow: Path) -> None:
    """Unit by unit, token for token, what its own concat_and_batch_sequences gives for the same texts."""
    plan = open_harvest(arrow).plan
    tokenizer, texts = tokenizer_of("actscope/builtin"), open_texts("builtin")
    whole = Cutter(tokenizer, context=1 << 30, mask="none")
    expected: list[list[int]] = []
    for unit in plan.units():
        numbers = plan.text_numbers(unit)
        bos = tokenizer.bos_token_id
        ids = [p.token_ids[int(p.token_ids[0] == bos) :] for p in whole.cut(numbers, texts.read(numbers))]
        own = [torch.from_numpy(found) for found in ids]
        expected += [
            c.tolist()
            for c in concat_and_batch_sequences(
                iter(own), 32, begin_batch_token_id=bos, sequence_separator_token_id=bos
            )
        ]
    assert datasets.load_from_disk(str(arrow))["token_ids"][:] == expected


def test_saelens_reads_it_as_cached_activations(arrow: Path) -> None:
    """Its ActivationsStore gives batches of the harvest's rows, and goes through all of them."""
    d = open_harvest(arrow).plan.d_model
    store = ActivationsStore(
        model=cast(Any, None),
        dataset=None,
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=32,
        d_in=d,
        n_batches_in_buffer=4,
        total_training_tokens=1000,
        store_batch_size_prompts=2,
        train_batch_size_tokens=16,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(arrow),
    )
    rows, ids = store.get_raw_llm_batch()
    assert rows.shape == (64, d) and ids is not None
    torch.testing.assert_close(rows.view(2, 32, d), states(ids.view(2, 32)), rtol=1e-4, atol=1e-4)
    assert next(store).shape == (16, d)


def test_saelens_trains_on_batches_of_a_safetensors_harvest(tmp_path: Path) -> None:
    """SAETrainer takes them as its data provider; the loss falls."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    harvest(open_storage(str(tmp_path)), crew(tmp_path, dtype="bfloat16"), quiet)
    opened = open_harvest(tmp_path)
    batches = opened.batches("layers.0.resid_post", 64, dtype=torch.float32)
    torch.manual_seed(0)
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=opened.plan.d_model, d_sae=64, l1_coefficient=0.0))
    config = SAETrainerConfig(
        total_training_samples=64 * 60, train_batch_size_samples=64, device="cpu", autocast=False, lr=1e-2, lr_end=1e-3,
        lr_scheduler_name="constant", lr_warm_up_steps=0, lr_decay_steps=0, n_restart_cycles=1, adam_beta1=0.9,
        adam_beta2=0.999, dead_feature_window=1000, feature_sampling_window=1000, n_checkpoints=0, checkpoint_path=None,
        save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=batches)
    losses = [trainer.step(next(batches)).loss.item() for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
