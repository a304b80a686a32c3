"""Reading with real vLLM: every row of every piece, against transformers on the same weights and ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from engines.vllm.conftest import ALL
from support.vllm import mixed
from support.vllm.bed import Configuration
from support.vllm.models import WIDTH
from support.vllm.pool import Engines
from support.vllm.reading import Reading

from actscope.errors import SettingsError, SiteError
from actscope.extraction.contract import Piece
from actscope.extraction.vllm.offline import OfflineEngine
from actscope.extraction.vllm.reader import VllmReader

SITES = "embed,1.mlp_out,2.resid_post,final_norm"
NAMES = ("embed", "layers.1.mlp_out", "layers.2.resid_post", "final_norm")
CONTEXT = 200
#: Passes of 64 tokens, so that a ring holds 256 rows; a cache of 13 blocks, and prompts in parts: some are preempted.
CROWDED = {
    "batch_tokens": 64,
    "context": CONTEXT,
    "model_dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "num_gpu_blocks_override": 14,
    "long_prefill_token_threshold": 16,
    "scheduler_reserve_full_isl": False,
}
LENGTHS = (1, 2, 5, 31, 32, 33, 64, 65, 70, 128, CONTEXT, CONTEXT, 150, 3, 3, 3)


def pieces(lengths: Sequence[int], seed: int = 0) -> list[Piece]:
    """One of each length; some positions are not wanted, and of the fifth none is."""
    random = np.random.default_rng(seed)
    found = []
    for number, n in enumerate(lengths):
        wanted = random.random(n) < (0.0 if number == 4 else 0.8)
        found.append(Piece(1000 + number, number % 3, np.array(mixed.prompt(seed + number, n), np.int32), wanted))
    return found


def check(
    model: Path, given: Sequence[Piece], rows: dict[str, np.ndarray], labels: np.ndarray, rounding: float = 0
) -> None:
    """Labels are the pieces' own, in order, and every row is the reference's."""
    assert np.array_equal(labels, np.concatenate([piece.labels() for piece in given]))
    truths = [mixed.truth(model, tuple(piece.token_ids.tolist()))[0] for piece in given]
    for site, values in rows.items():
        right = np.concatenate([truth[site][piece.wanted] for piece, truth in zip(given, truths, strict=True)])
        worst = np.abs(values - right).max(axis=1) / np.abs(right).max(axis=1)
        assert values.shape == right.shape and worst.max() <= mixed.ROW_TOLERANCE + rounding, (
            f"{site}: {worst.max():.2g}"
        )


@pytest.fixture(scope="module")
def llama(model: Callable[[str], Path], engines: Engines) -> Iterator[Reading]:
    yield engines.start(Reading, Configuration(model("llama"), arguments={"sites": SITES, **CROWDED}))
    engines.end()


def test_every_row_of_every_piece_is_right_although_vllm_was_crowded(llama: Reading) -> None:
    """More rows than the ring holds; some computed again after preemption, and given once."""
    given = pieces(LENGTHS)
    rows, labels, computed = llama.read(given)
    assert tuple(rows) == NAMES
    check(llama.configuration.model, given, rows, labels)
    assert sum(LENGTHS) > 3 * 256 and computed > sum(LENGTHS), computed


def test_the_same_pieces_give_the_same_bits_whatever_was_read_before(llama: Reading) -> None:
    """And so they do when passes were lost on their way: all is read again."""
    given = pieces(LENGTHS, seed=100)
    first, _, computed = llama.read(given)
    llama.read(pieces([50] * 9, seed=300))
    assert llama.ask("facts")["deterministic"]
    llama.ask("lose", passes=1)
    again, _, recomputed = llama.read(given)
    assert all(np.array_equal(first[site], again[site]) for site in NAMES)
    assert recomputed > computed


def test_rows_that_never_come_are_an_error(llama: Reading) -> None:
    """Which says what is missing; the reader goes on."""
    llama.ask("lose", passes=1000)
    with pytest.raises(
        AssertionError, match=r"EngineError: .*without \d+ of \d+ rows, the first of text 1000, piece 0, at embed"
    ):
        llama.read(pieces([20, 30]))
    llama.ask("lose", passes=0)
    given = pieces([20, 30])
    check(llama.configuration.model, given, *llama.read(given)[:2])


def test_pieces_that_cannot_be_read_are_refused(llama: Reading) -> None:
    """Before any is read: too long, empty, of another vocabulary. No pieces, and pieces that nobody wants, are no rows."""
    wanted = np.ones(3, bool)
    for ids, words in (
        (list(range(CONTEXT + 1)), f"201 tokens, expected 1 to {CONTEXT}"),
        ([], "0 tokens"),
        ([1, 1000, 3], "tokens 1 to 1000, this model has 0 to 999"),
    ):
        with pytest.raises(AssertionError, match=f"RequestRefused: text 7, piece 1: {words}"):
            llama.read([Piece(7, 1, np.array(ids, np.int32), np.ones(len(ids), bool))])
    rows, labels, _ = llama.read([Piece(0, 0, np.array([1, 2, 3], np.int32), ~wanted)])
    assert len(labels) == 0 and rows["embed"].shape == (0, WIDTH)
    assert llama.read([])[0]["embed"].shape == (0, WIDTH)


def test_nothing_is_left_when_it_is_closed(llama: Reading) -> None:
    """No process, no shared memory, no card; and the ring had no name for others while it was used."""
    assert llama.ask("close") == {"children": [], "maps": [], "named": False, "runtime": []}


@pytest.mark.parametrize("way", ["eager", *(["compiled"] if ALL else [])])
def test_a_model_is_read_to_the_end_of_its_context_in_another_dtype(
    way: Literal["eager", "compiled"], model: Callable[[str], Path], engines: Engines
) -> None:
    """GPT-2 has as many positions as its context, and the token behind the last one is never computed."""
    arguments = {"sites": SITES, "batch_tokens": 512, "context": 1024, "model_dtype": "float32", "dtype": "bfloat16"}
    arguments |= {"enforce_eager": way == "eager"}
    off = {"VLLM_USE_AOT_COMPILE": "0"}  # what it saves cannot be loaded on a CPU
    reading = engines.start(Reading, Configuration(model("gpt2"), compile=way, arguments=arguments, environment=off))
    facts = reading.started
    assert (facts["engine"], facts["sites"], facts["dtype"], facts["d_model"]) == (
        "vllm",
        list(NAMES),
        "bfloat16",
        WIDTH,
    )
    given = pieces([1024, 10, 300, 7])
    rows, labels, computed = reading.read(given)
    check(reading.configuration.model, given, rows, labels, rounding=2**-8)
    assert computed == sum(len(piece.token_ids) for piece in given)
    assert facts["revision"] and not reading.ask("close")["children"]
    engines.end()


def test_what_cannot_be_asked_for_is_refused_before_anything_starts() -> None:
    """Engine arguments that are the reader's own, dtypes that rows cannot have, no sites."""
    with pytest.raises(SettingsError, match="async_scheduling, enable_prefix_caching cannot be given"):
        OfflineEngine("m", "0", "auto", 64, 64, {"enable_prefix_caching": True, "async_scheduling": True})
    with pytest.raises(SettingsError, match="dtype 'int8': expected one of auto, float32"):
        VllmReader("m", "0", dtype="int8")
    with pytest.raises(SiteError, match="names no site"):
        VllmReader("m", " ")
