"""Rows of pieces read together in padded batches are those of each piece run alone, with their labels, bit by bit the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hf.tiny import ARCHITECTURES, byte_tokenizer, tiny
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from actscope.engines import builtin
from actscope.engines.builtin.text import generate
from actscope.engines.hf.loading import LoadedModel, adopt, load
from actscope.errors import EngineError, SettingsError, SiteError
from actscope.extraction.batching import batches
from actscope.extraction.contract import ExtractedRows, Piece
from actscope.extraction.cutting import Cutter
from actscope.extraction.hf import HfReader, length_edge
from actscope.taps.anatomy import Location, resolve

EVERYWHERE = "all,all.resid_pre,all.attn_out,all.mlp_out,embed,final_norm"
LENGTHS = (5, 30, 11, 40, 7, 22, 1, 2, 40)
_SMALL: dict[str, Any] = dict(
    vocab_size=258, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, bos_token_id=256, eos_token_id=257, pad_token_id=0,
)  # fmt: skip
_LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
#: What may go wrong with padding on the right: positions that come from the mask, biases that do, windows, rows that see
#: ahead, rotary frequencies that follow the longest sequence, experts.
ODD: dict[str, Any] = {
    "alibi": lambda: BloomForCausalLM(BloomConfig(vocab_size=258, hidden_size=64, n_layer=3, n_head=4)),
    "alibi in every block": lambda: MptForCausalLM(
        MptConfig(vocab_size=258, d_model=64, n_layers=3, n_heads=4, expansion_ratio=2, max_seq_len=64)
    ),
    "positions from the mask": lambda: OPTForCausalLM(
        OPTConfig(vocab_size=258, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
                  max_position_embeddings=64, word_embed_proj_dim=64)
    ),
    "sees ahead": lambda: BertLMHeadModel(
        BertConfig(vocab_size=258, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
    ),
    "window": lambda: MistralForCausalLM(MistralConfig(**_SMALL, sliding_window=8)),
    "window in some layers": lambda: Qwen3ForCausalLM(
        Qwen3Config(**_SMALL, head_dim=16, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    ),
    "long rope": lambda: Phi3ForCausalLM(
        Phi3Config(**_SMALL | {"original_max_position_embeddings": 16, "rope_scaling": _LONG_ROPE})
    ),
    "experts": lambda: MixtralForCausalLM(MixtralConfig(**_SMALL, num_local_experts=4)),
}  # fmt: skip


def odd(name: str) -> LoadedModel:
    torch.manual_seed(0)
    return adopt(ODD[name](), byte_tokenizer(), name=f"odd/{name}")


def pieces_of(lengths: Any = LENGTHS, seed: int = 0) -> list[Piece]:
    """Random ids; of each piece some rows are wanted, the last one always."""
    rng = np.random.default_rng(seed)
    found = []
    for number, n in enumerate(lengths):
        wanted = rng.random(n) < 0.7
        wanted[-1] = True
        found.append(Piece(100 + number, number % 3, rng.integers(1, 250, n).astype(np.int32), wanted))
    return found


def alone(loaded: LoadedModel, piece: Piece, places: dict[str, Location]) -> dict[str, torch.Tensor]:
    """What plain hooks see when only this piece is run, without a mask: the rows that are wanted."""
    seen: dict[str, torch.Tensor] = {}

    def keep(site: str, value: Any) -> None:
        hidden = value[0] if isinstance(value, tuple) else value
        seen[site] = hidden.reshape(-1, hidden.shape[-1])[torch.from_numpy(piece.wanted)].clone()

    hooks = [
        place.module.register_forward_hook(lambda m, a, out, site=site: keep(site, out))
        if place.side == "output"
        else place.module.register_forward_pre_hook(
            lambda m, a, kw, site=site: keep(site, a[0] if a else kw["hidden_states"]), with_kwargs=True
        )
        for site, place in places.items()
    ]
    with torch.no_grad():
        loaded.model(torch.from_numpy(piece.token_ids.astype(np.int64))[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def places_of(loaded: LoadedModel, sites: str) -> dict[str, Location]:
    return {str(site): place for site, place in resolve(loaded.model, sites).items()}


def check_as_alone(loaded: LoadedModel, pieces: list[Piece], sites: str, found: ExtractedRows) -> None:
    places = places_of(loaded, sites)
    expected = [alone(loaded, piece, places) for piece in pieces]
    assert list(found.values) == list(places)
    for site, values in found.values.items():
        close(values, torch.cat([rows[site] for rows in expected]))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-4 of the rows' scale."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_those_of_output_hidden_states_of_each_piece_alone(architecture: str) -> None:
    """Right padding, several batches, no mask: piece by piece, position by position, and only what is wanted."""
    loaded, pieces = tiny(architecture), pieces_of()
    found = HfReader(loaded, "all,embed,final_norm", batch_tokens=96).read(pieces)
    expected: list[list[torch.Tensor]] = []
    for piece in pieces:
        with torch.no_grad():
            ids = torch.from_numpy(piece.token_ids.astype(np.int64))[None]
            out = loaded.model(ids, output_hidden_states=True)
        expected.append([hidden[0][torch.from_numpy(piece.wanted)] for hidden in out.hidden_states])
    names = ["embed", *(f"layers.{layer}.resid_post" for layer in range(3)), "final_norm"]
    for number, site in enumerate(names):
        close(found.values[site], torch.cat([states[number] for states in expected]))
    assert found.labels.tolist() == [label for piece in pieces for label in piece.labels().tolist()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_point_of_every_block_is_read_where_a_plain_hook_reads_it(architecture: str) -> None:
    """What attention and the MLP add, and the residual stream before and after each block."""
    loaded, pieces = tiny(architecture), pieces_of()
    check_as_alone(loaded, pieces, EVERYWHERE, HfReader(loaded, EVERYWHERE, batch_tokens=96).read(pieces))


@pytest.mark.parametrize("name", ODD)
def test_padding_changes_no_row_of_models_that_read_it_oddly(name: str) -> None:
    """Masks, positions, windows, biases and frequencies are as for the piece alone."""
    loaded, pieces = odd(name), pieces_of()
    reader = HfReader(loaded, "all", batch_tokens=120)
    assert any(len(batch.places) > 1 for batch in batches(pieces, 120, length_edge(loaded.config)))
    check_as_alone(loaded, pieces, "all", reader.read(pieces))


@pytest.mark.parametrize("name", ODD)
def test_a_model_is_given_the_mask_where_rows_see_ahead(name: str) -> None:
    """Only a model whose rows see later tokens gets the mask: attention without one is faster."""
    given_masks = []
    loaded = odd(name)
    loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: given_masks.append("attention_mask" in kwargs), with_kwargs=True
    )
    HfReader(loaded, "0").read(pieces_of((3, 9)))
    assert given_masks == [False, name == "sees ahead"]


def test_frequencies_that_follow_the_longest_sequence_keep_to_each_piece() -> None:
    """LongRoPE: pieces beyond the original length do not stand in a batch with shorter ones."""
    assert length_edge(odd("long rope").config) == 16
    assert length_edge(odd("window").config) is None
    loaded, pieces = odd("long rope"), pieces_of((16, 17, 15, 18))
    check_as_alone(loaded, pieces, "all", HfReader(loaded, "all").read(pieces))


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=8), batch_tokens=st.integers(1, 200), seed=st.integers(0, 99))
def test_any_pieces_in_any_batches_give_the_rows_of_each_alone(
    lengths: list[int], batch_tokens: int, seed: int
) -> None:
    """Any pieces, none, or pieces longer than a batch: rows equal those of each piece run alone."""
    pieces = pieces_of(lengths, seed)
    found = HfReader(LLAMA, "1,2.mlp_out", batch_tokens=batch_tokens).read(pieces)
    assert len(found.labels) == sum(piece.n_rows for piece in pieces)
    if pieces:
        check_as_alone(LLAMA, pieces, "1,2.mlp_out", found)
    else:
        assert found.values["layers.1.resid_post"].shape == (0, 64)


LLAMA = tiny("llama")


def bits(rows: ExtractedRows) -> str:
    digest = hashlib.sha256(rows.labels.tobytes())
    for values in rows.values.values():
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_built_in() -> str:
    """Bits of the rows of some built-in texts: with two threads, so that work is divided."""
    torch.set_num_threads(2)
    loaded = load(builtin.NAME)
    texts = [next(generate(seed)).text for seed in range(24)]
    pieces = Cutter(loaded.tokenizer, context=128).cut(range(24), texts)
    return bits(HfReader(loaded, "layers.2.resid_post,embed", batch_tokens=1024).read(pieces))


def test_the_same_pieces_give_the_same_bits_whatever_was_read_before() -> None:
    """Other pieces, fewer, more, and another reader of the same model in between."""
    loaded = tiny("qwen2")
    reader, pieces = HfReader(loaded, "all", batch_tokens=96), pieces_of()
    before = bits(reader.read(pieces))
    for other in (pieces_of(seed=1), pieces[:3], pieces[::-1], pieces_of((200, 3))):
        reader.read(other)
        HfReader(loaded, "embed").read(other)
        assert bits(reader.read(pieces)) == before


def test_another_process_with_as_many_threads_gives_the_same_bits() -> None:
    """A chunk of a feed can be made again after a crash."""
    code = "import sys; sys.path[:0] = sys.argv[1:]; import test_hf; print(test_hf.read_built_in())"
    paths = [path for path in sys.path if path.endswith("tests")]
    here = __file__.rpartition("/")[0]
    out = subprocess.run([sys.executable, "-c", code, here, *paths], capture_output=True, text=True, check=True).stdout
    assert out.strip() == read_built_in()


def test_nothing_above_the_last_site_is_computed() -> None:
    """Blocks after the last site and the head do not run; if that site is a block's input, neither does its block."""
    loaded, ran = tiny("llama"), []
    for number, block in enumerate(loaded.model.model.layers):
        block.mlp.register_forward_hook(lambda m, a, out, number=number: ran.append(number))
    loaded.model.lm_head.register_forward_hook(lambda m, a, out: ran.append("head"))
    for sites, expected in (("0,2.resid_pre", [0, 1]), ("1", [0, 1]), ("embed", []), ("1.attn_out", [0])):
        reader = HfReader(loaded, sites)
        ran.clear()
        reader.read(pieces_of((4,)))
        assert ran == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_come_in_the_dtype_that_was_asked_for(dtype: str) -> None:
    """The model's own rows, rounded; "auto" is what the model computes in."""
    pieces = pieces_of()
    reader = HfReader(LLAMA, "1", dtype=dtype)
    found = reader.read(pieces).values["layers.1.resid_post"]
    plain = HfReader(LLAMA, "1").read(pieces).values["layers.1.resid_post"]
    assert reader.facts.dtype == dtype
    assert found.equal(plain.to(getattr(torch, dtype)))
    assert HfReader(tiny("llama", torch.bfloat16), "1").facts.dtype == "bfloat16"


def test_bfloat16_models_give_the_rows_of_a_plain_run_within_its_rounding() -> None:
    """8 bits, once a layer."""
    loaded, pieces = tiny("llama", torch.bfloat16), pieces_of()
    found = HfReader(loaded, "2", batch_tokens=96).read(pieces).values["layers.2.resid_post"].float()
    places = places_of(loaded, "2")
    expected = torch.cat([alone(loaded, piece, places)["layers.2.resid_post"] for piece in pieces]).float()
    assert (found - expected).abs().max() <= 0.15 * max(1.0, float(expected.abs().max()))


def test_rows_are_ordinary_tensors_on_the_cpu() -> None:
    """A trainer in the same process may compute gradients with them, and change them."""
    values = HfReader(LLAMA, "1").read(pieces_of()).values["layers.1.resid_post"]
    weight = torch.zeros(64, requires_grad=True)
    (values @ weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    values += 1


def test_facts_say_what_is_read() -> None:
    """Sites in the model's order, the width of their rows, and that the bits can be had again."""
    facts = HfReader(LLAMA, "first,last,embed").facts
    assert facts.sites == ("embed", "layers.0.resid_post", "layers.3.resid_post")
    assert (facts.engine, facts.model, facts.d_model, facts.dtype) == ("hf", "tiny/llama", 64, "float32")
    assert facts.deterministic


def test_a_module_is_read_by_its_path() -> None:
    """A module with one width of rows is read; for differing widths the error names both."""
    found = HfReader(LLAMA, "model.layers.1.mlp.up_proj").read(pieces_of((4,)))
    assert found.values["model.layers.1.mlp.up_proj"].shape[1] == 96
    with pytest.raises(SettingsError, match=r"layers\.1\.resid_post 64, model\.layers\.1\.mlp\.up_proj 96"):
        HfReader(LLAMA, "1,model.layers.1.mlp.up_proj")


def test_a_site_that_is_not_reached_once_in_a_pass_is_refused() -> None:
    """The refusal comes when the reader is opened."""
    loaded = tiny("llama")
    layers = loaded.model.model.layers
    layers[2].mlp = layers[1].mlp
    with pytest.raises(EngineError, match=r"layers\.1\.mlp_out 2 times.*every site once"):
        HfReader(loaded, "1.mlp_out")
    loaded = tiny("llama")
    loaded.model.model.unused = torch.nn.Linear(64, 64)
    with pytest.raises(EngineError, match=r"unused 0 times"):
        HfReader(loaded, "1,model.unused")
    with pytest.raises(EngineError, match=r"unused 0 times"):
        HfReader(loaded, "model.unused")


def test_a_module_that_does_not_give_a_row_for_each_token_is_refused() -> None:
    """GPT-2's embedding of positions gives rows of one line."""
    with pytest.raises(EngineError, match=r"transformer.wpe: expected a row for each"):
        HfReader(tiny("gpt2"), "transformer.wpe")


def test_a_site_that_stops_being_reached_is_noticed() -> None:
    """Never fewer rows than the pieces want, and never another pass's."""
    loaded = tiny("llama")
    reader = HfReader(loaded, "0,2")
    layers = loaded.model.model.layers
    layers[0].forward, first = lambda hidden, **others: hidden, layers[0].forward
    reader.read(pieces_of((4,)))
    layers[0].forward = first
    loaded.model.model.layers = layers[1:]
    with pytest.raises(EngineError, match=r"layers\.0\.resid_post 0 times"):
        reader.read(pieces_of((4,)))


def test_rows_that_are_not_finite_are_refused() -> None:
    """The message says whose row it is, and what to do: float16 reaches to 65,504."""
    loaded = tiny("llama")
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight[7] *= 1e8
    pieces = [Piece(5, 2, np.array([1, 2, 7, 3], np.int32), np.ones(4, bool))]
    HfReader(loaded, "embed").read(pieces)
    with pytest.raises(EngineError, match=r"embed at position 2 of text 5 \(piece 2\).*float16"):
        HfReader(loaded, "embed", dtype="float16").read(pieces)


def test_a_piece_that_the_model_cannot_read_is_an_engine_error() -> None:
    """Too long, or with an id that it does not have; and the reader goes on."""
    reader = HfReader(LLAMA, "0")
    with pytest.raises(EngineError, match="a piece has 600 tokens: tiny/llama reads at most 512"):
        reader.read(pieces_of((600,)))
    with pytest.raises(EngineError, match="tiny/llama failed on a batch of 1 x 2 tokens"):
        reader.read([Piece(0, 0, np.array([1, 999], np.int32), np.ones(2, bool))])
    assert len(reader.read(pieces_of()).labels)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in LLAMA.model.modules())


def test_a_closed_reader_has_let_go_of_its_model() -> None:
    """A closed reader raises an error that says so, and closing it twice does nothing."""
    reader = HfReader(replace(LLAMA), "0")
    reader.close()
    reader.close()
    with pytest.raises(EngineError, match="closed"):
        reader.read(pieces_of())


@pytest.mark.parametrize(
    ("sites", "options", "error"),
    [
        ("1", {"dtype": "int8"}, SettingsError),
        ("1", {"batch_tokens": 0}, SettingsError),
        ("9", {}, SiteError),
        ("model.nothing", {}, SiteError),
    ],
)
def test_what_cannot_be_read_is_refused(sites: str, options: dict[str, Any], error: type[Exception]) -> None:
    """Bad arguments are refused before the model runs."""
    with pytest.raises(error):
        HfReader(LLAMA, sites, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_a_gpu_are_those_of_each_piece_alone_there(architecture: str) -> None:
    """They come down through pinned memory while further batches are computed, to the places where they belong."""
    loaded, pieces = tiny(architecture), pieces_of(LENGTHS * 6)
    plain = HfReader(loaded, EVERYWHERE).read(pieces)
    on_gpu = replace(loaded, model=loaded.model.to("cuda"))  # type: ignore[arg-type]  # transformers types `to` without arguments
    found = HfReader(on_gpu, EVERYWHERE, batch_tokens=96).read(pieces)
    for site, values in found.values.items():
        assert values.device.type == "cpu"
        assert (values - plain.values[site]).abs().max() < 2e-3 * max(1.0, float(plain.values[site].abs().max()))
