"""Rows: what a shard holds is what the model computes for these tokens, whose text is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.harvest.workers import crew, quiet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actscope.engines.hf.loading import LoadedModel, load
from actscope.errors import SettingsError
from actscope.extraction.cutting import Cutter, tokenizer_of
from actscope.extraction.texts import open_texts
from actscope.harvest.cutting import NO_TEXT, Packed, separator_of
from actscope.harvest.driver import harvest
from actscope.harvest.manifest import manifest_of
from actscope.harvest.settings import HarvestSettings
from actscope.harvest.storage import open_storage
from actscope.harvest.worker import UnitWorker


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


def tokenizer_with(**tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single words that adds nothing by itself, with these special tokens."""
    words = {word: i for i, word in enumerate(["one", "two", "three", "[B]", "[E]", "[C]", "[S]"])}
    model = Tokenizer(models.WordLevel(words, unk_token="one"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, **tokens)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("tokens", "wanted", "role", "ids"),
    [
        ({"bos_token": "[B]", "eos_token": "[E]"}, "bos", "bos", [3, 0, 1, 3, 2, 2]),
        ({"bos_token": "[B]", "eos_token": "[E]"}, "eos", "eos", [3, 0, 1, 4, 2, 2]),
        ({"eos_token": "[E]"}, "bos", "eos", [0, 1, 4, 2, 2, 4]),
        ({"bos_token": "[B]"}, "eos", "bos", [3, 0, 1, 3, 2, 2]),
        ({"cls_token": "[C]", "sep_token": "[S]"}, "bos", "bos", [5, 0, 1, 5, 2, 2]),
        ({"cls_token": "[C]", "sep_token": "[S]"}, "eos", "eos", [5, 0, 1, 6, 2, 2]),
        ({"sep_token": "[S]"}, "bos", "eos", [0, 1, 6, 2, 2, 6]),
        ({}, "none", "none", [0, 1, 2, 2, 0, 1]),
    ],
)
def test_a_tokenizer_that_lacks_the_separator_gives_its_other_one(
    tokens: dict[str, str], wanted: str, role: str, ids: list[int]
) -> None:
    """Texts never run into each other unless that was asked for."""
    tokenizer = tokenizer_with(**tokens)
    assert separator_of(tokenizer, wanted).role == role
    whole = Cutter(tokenizer, context=1 << 30, mask="none")
    packed = Packed(whole, tokenizer, context=6, separator=wanted, mask="none")
    (first, *_) = packed.cut(range(3), ["one two", "three three", "one two"]).pieces
    assert first.piece.token_ids.tolist() == ids
    assert [owner == NO_TEXT for owner in first.texts] == [number >= 3 for number in ids]


@pytest.mark.parametrize("wanted", ["bos", "eos"])
def test_a_tokenizer_with_nothing_to_separate_texts_is_refused(wanted: str) -> None:
    tokenizer = tokenizer_with()
    whole = Cutter(tokenizer, context=1 << 30, mask="none")
    with pytest.raises(SettingsError, match=r"no BOS, CLS, EOS or SEP token.*separator none"):
        Packed(whole, tokenizer, context=6, separator=wanted, mask="none")


def test_the_manifest_names_the_separator_that_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A built-in tokenizer without its BOS: the EOS stands between texts, and a warning says so."""
    tokenizer = tokenizer_of("actscope/builtin")
    tokenizer.bos_token = None
    monkeypatch.setattr("actscope.harvest.worker.tokenizer_of", lambda model, **how: tokenizer)
    settings = HarvestSettings(
        model="actscope/builtin", dataset="builtin", sites="0", texts=4, context=32, pack=True, device="cpu"
    )
    worker = UnitWorker(settings, open_storage(str(tmp_path)))
    plan = worker.propose().plan
    manifest = manifest_of(plan, [worker.run(plan, 0)])
    worker.close()
    assert manifest.plan.separator == "eos"
    assert "no BOS" in caplog.text and "separated by EOS" in caplog.text
