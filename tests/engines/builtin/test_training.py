"""The parts of the training: rows, learning rate, optimizer, n-gram baselines, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from actscope.engines.builtin.data import TokenRows, texts
from actscope.engines.builtin.ngrams import Trigram, Unigram
from actscope.engines.builtin.optimizer import Optimizer, orthogonal
from actscope.engines.builtin.tokenizer import train_tokenizer
from actscope.engines.builtin.train import WARM_UP, TrainingRun, new_model, rate


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(texts(400, 2, "train"))


def test_rows_are_the_same_for_the_same_seed_and_mostly_start_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    one, other = (TokenRows(tokenizer, 3, texts_per_shard=200).batch(16, 64) for _ in range(2))
    assert one.shape == (16, 65)
    assert (one == other).all()
    assert (one[:, 0] == tokenizer.bos_token_id).mean() > 0.7


def test_rows_go_on_beyond_one_shard_with_new_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = TokenRows(tokenizer, 3, texts_per_shard=20)
    batches = [rows.batch(4, 64).tobytes() for _ in range(40)]
    assert len(set(batches)) == len(batches)


def test_learning_rate_rises_then_falls_and_never_leaves_its_range() -> None:
    rates = [rate(progress) for progress in np.linspace(0, 1.1, 200)]
    assert 0 < min(rates) <= max(rates) <= 1.02
    assert rate(WARM_UP) == pytest.approx(1.0)
    assert rate(1.0) == pytest.approx(0.01)


@pytest.mark.parametrize("shape", [(8, 8), (6, 16), (16, 6)])
def test_orthogonal_brings_all_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape), iterations=10))
    assert ((values > 0.6) & (values < 1.3)).all()


def test_optimizer_learns_and_goes_on_exactly_where_it_stopped() -> None:
    def steps(n: int, optimizer: Optimizer, model: torch.nn.Module) -> None:
        for _ in range(n):
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step(1.0)

    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    one, other = (Optimizer(model, model, 0.02, 1e-3) for model in models)
    steps(6, one, models[0])
    steps(3, other, models[1])
    again = Optimizer(models[1], models[1], 0.02, 1e-3)
    again.load(other.state())
    steps(3, again, models[1])
    one_weight, other_weight = (model.state_dict()["0.weight"] for model in models)
    assert torch.equal(one_weight, other_weight)


def test_checkpoint_brings_back_weights_and_progress(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    run = TrainingRun(new_model(tokenizer), tokenizer, tmp_path, 60.0, 1)
    run.model.model(torch.ones(1, 4, dtype=torch.long)).last_hidden_state.sum().backward()
    run.optimizer.step(1.0)
    run.step, run.tokens, run.elapsed = 7, 70, 12.5
    run.save_checkpoint()
    again = TrainingRun(new_model(tokenizer), tokenizer, tmp_path, 60.0, 1)
    again.load_checkpoint()
    assert (again.step, again.tokens, again.elapsed) == (7, 70, 12.5)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True))


def test_ngram_probabilities_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, 400)
    for ngram in (Unigram(ids, 12), Trigram(ids, 12)):
        for context in ((1, 2), (11, 3), (11, 11)):
            total = sum(ngram.probabilities(np.array([*context, token]))[0] for token in range(12))
            assert total == pytest.approx(1.0)


def test_trigram_knows_what_follows_two_tokens() -> None:
    ids = np.tile(np.arange(7), 50)
    assert (Trigram(ids, 7).probabilities(ids) > 0.9).all()
