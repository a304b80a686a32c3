"""Rows: what a shard holds is what the model computes for these tokens, whose text is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.harvest.workers import crew, quiet

from actscope.engines.hf.loading import LoadedModel, load
from actscope.extraction.cutting import Cutter
from actscope.extraction.texts import open_texts
from actscope.harvest.cutting import NO_TEXT, Packed
from actscope.harvest.driver import harvest
from actscope.harvest.storage import open_storage


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load("actscope/builtin", device="cpu")


def states(loaded: LoadedModel, ids: Any) -> torch.Tensor:
    """resid_post of the first block for sequences [n, length], by transformers itself."""
    with torch.no_grad():
        found = loaded.model.model(torch.as_tensor(ids).long(), output_hidden_states=True)
    rows: torch.Tensor = found.hidden_states[1]
    return rows


def harvested(out: Path, **changes: Any) -> list[dict[str, torch.Tensor]]:
    manifest = harvest(open_storage(str(out)), crew(out, **changes), quiet).manifest
    return [load_file(out / shard.name) for shard in manifest.shards]


def test_every_row_is_what_the_model_computes_for_its_token(tmp_path: Path, loaded: LoadedModel) -> None:
    """Plain safetensors opens a shard; each row is the model's for its text, piece and position, and special tokens have none."""
    shard = harvested(tmp_path, texts=6)[0]
    texts = open_texts("builtin")
    cutter = Cutter(loaded.tokenizer, context=48)
    numbers = sorted(set(shard["text"].tolist()))
    pieces = {(p.text, p.number): p for p in cutter.cut(numbers, texts.read(numbers))}
    assert len(shard["text"]) == sum(piece.n_rows for piece in pieces.values())
    for (text, number), piece in pieces.items():
        chosen = (shard["text"] == text) & (shard["piece"] == number)
        assert shard["position"][chosen].tolist() == np.flatnonzero(piece.wanted).tolist()
        assert shard["token_id"][chosen].tolist() == piece.token_ids[piece.wanted].tolist()
        expected = states(loaded, piece.token_ids[None])[0][torch.from_numpy(piece.wanted)]
        torch.testing.assert_close(shard["layers.0.resid_post"][chosen], expected, rtol=1e-4, atol=1e-4)


def test_packed_rows_are_what_the_model_computes_for_the_packed_context(tmp_path: Path, loaded: LoadedModel) -> None:
    """Contexts are full, begin with the BOS, and each is read as one sequence."""
    shard = harvested(tmp_path, texts=6, pack=True, dtype="bfloat16")[0]
    ids = shard["token_id"].reshape(-1, 48)
    assert (ids[:, 0] == loaded.tokenizer.bos_token_id).all() and (shard["text"].reshape(-1, 48)[:, 0] == NO_TEXT).all()
    assert shard["position"].reshape(-1, 48).tolist() == [list(range(48))] * len(ids)
    rows = shard["layers.0.resid_post"]
    assert rows.dtype == torch.bfloat16
    torch.testing.assert_close(rows.float().view(len(ids), 48, -1), states(loaded, ids), rtol=1e-2, atol=1e-2)


def test_a_row_with_no_number_is_stored_and_counted(tmp_path: Path) -> None:
    """Infinities do not spoil the statistics of the rest."""
    from actscope.harvest.statistics import added, statistics_of, sums_of

    rows = torch.tensor([[3.0, 4.0], [float("nan"), 1.0], [0.0, 0.0]])
    found = statistics_of(added([sums_of(rows), sums_of(rows[:1])]), 2)
    assert (found.rows, found.not_finite, found.mean_norm) == (3, 1, 10 / 3)
    assert found.mean == pytest.approx(14 / 6) and found.std == pytest.approx(np.std([3, 4, 3, 4, 0, 0]))


@pytest.mark.parametrize("separator", ["bos", "eos", "none"])
def test_packing_puts_every_token_in_its_place(loaded: LoadedModel, separator: str) -> None:
    """Without BOS and separators, the contexts are the texts' tokens one after the other, cut nowhere but at the end."""
    tokenizer = loaded.tokenizer
    whole = Cutter(tokenizer, context=1 << 30, mask="none")
    texts = [f"text number {i} " * (i % 7 + 1) for i in range(40)]
    cut = Packed(whole, tokenizer, context=16, separator=separator, mask="none").cut(range(40), texts)
    bos = tokenizer.bos_token_id
    own = [piece.token_ids[int(piece.token_ids[0] == bos) :] for piece in whole.cut(range(40), texts)]
    ids = np.concatenate([owned.piece.token_ids for owned in cut.pieces])
    owners = np.concatenate([owned.texts for owned in cut.pieces])
    expected = np.concatenate(own)
    kept = int((owners != NO_TEXT).sum())
    assert ids[owners != NO_TEXT].tolist() == expected[:kept].tolist()
    assert 0 <= len(expected) - kept <= cut.left_over < 16
    assert all(len(owned.piece.token_ids) == 16 for owned in cut.pieces)
