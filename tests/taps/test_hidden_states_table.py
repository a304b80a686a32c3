"""The table of docs/layer-numbers.md: which entry of transformers' `hidden_states` is which site."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import Location, locate
from actscope.taps.text_model import blocks

N_LAYERS = 3
PAGE = Path(__file__).parents[2] / "docs/layer-numbers.md"
_SMALL = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=N_LAYERS, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_OPT = dict(ffn_dim=48, word_embed_proj_dim=32, dropout=0.0)
#: Model, its changes to the config, and the path of its final norm ("" if it has none), as a person finds it in the model file.
MODELS: dict[str, tuple[str, dict[str, object], str]] = {
    "llama": ("llama", {}, "norm"),
    "gpt2": ("gpt2", {}, "ln_f"),
    "gemma2": ("gemma2", {"head_dim": 8}, "norm"),
    "falcon": ("falcon", {}, "ln_f"),
    "mamba": ("mamba", {}, "norm_f"),
    "mamba2": ("mamba2", dict(num_heads=8, head_dim=8, n_groups=2, state_size=8, chunk_size=8), "norm_f"),
    "falcon_mamba": ("falcon_mamba", {}, "norm_f"),
    "rwkv": ("rwkv", {"attention_hidden_size": 32}, "ln_out"),
    "opt": ("opt", {**_OPT, "do_layer_norm_before": True}, "decoder.final_layer_norm"),
    "opt with do_layer_norm_before=False": ("opt", {**_OPT, "do_layer_norm_before": False}, ""),
    "bert": ("bert", {}, ""),
}
#: The list of blocks, as a person finds it in the model file.
BLOCKS = {"gpt2": "h", "falcon": "h", "opt": "decoder.layers", "bert": "encoder.layer", "rwkv": "blocks"}
#: Models without an entry for the embeddings: entry i is the output of block i.
FROM_THE_FIRST_OUTPUT = ("mamba", "mamba2", "falcon_mamba", "rwkv")


def model_of(name: str) -> PreTrainedModel:
    """A random model without a head, whose norms change what passes them."""
    kind, changes, _ = MODELS[name]
    model = random_model(kind, changes)
    with torch.no_grad():
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.uniform_(0.5, 1.5)
    return model


def random_model(kind: str, changes: dict[str, object]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_SMALL, **changes})
    model: PreTrainedModel = AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]
    return model


def seen_in_a_pass(model: PreTrainedModel, places: dict[str, Location]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """What plain hooks see at these places in one pass, and `hidden_states` of that pass."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: object) -> None:
        found = value[0] if isinstance(value, tuple) else value
        assert isinstance(found, Tensor)
        seen.setdefault(name, found.clone())

    def hook_of(name: str, place: Location) -> torch.utils.hooks.RemovableHandle:
        if place.side == "input":
            return place.module.register_forward_pre_hook(
                lambda _module, args, kwargs: keep(name, args or kwargs["hidden_states"]), with_kwargs=True
            )
        return place.module.register_forward_hook(lambda _module, _args, output: keep(name, output))

    handles = [hook_of(name, place) for name, place in places.items()]
    with torch.no_grad():
        states = model(torch.arange(3, 15)[None], output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    return seen, states


def plain_places(model: PreTrainedModel, name: str) -> dict[str, Location]:
    """The table's places by the model's own names: each entry's number, and the block and the norm at the end."""
    layers = model.get_submodule(BLOCKS.get(MODELS[name][0], "layers"))
    assert isinstance(layers, nn.ModuleList)
    places = {f"input of {i}": Location(block, "input") for i, block in enumerate(layers)}
    places |= {f"output of {i}": Location(block, "output") for i, block in enumerate(layers)}
    if MODELS[name][2]:
        places["norm"] = Location(model.get_submodule(MODELS[name][2]), "output")
    return places


@pytest.mark.parametrize("name", MODELS)
def test_entry_i_is_the_input_of_block_i_and_the_last_is_behind_the_final_norm_if_there_is_one(name: str) -> None:
    """In state-space models and RWKV entry i is the output of block i."""
    model = model_of(name)
    seen, states = seen_in_a_pass(model, plain_places(model, name))
    assert len(states) == N_LAYERS + 1
    shift = 1 if name in FROM_THE_FIRST_OUTPUT else 0
    for i in range(N_LAYERS - shift):
        assert torch.equal(states[i], seen[f"input of {i + shift}"])
    for i in range(1 - shift, N_LAYERS):
        assert torch.equal(states[i], seen[f"output of {i + shift - 1}"])
    last = seen[f"output of {N_LAYERS - 1}"]
    assert torch.equal(states[-1], seen.get("norm", last))
    assert torch.equal(states[-1], last) == ("norm" not in seen)


@pytest.mark.parametrize("name", MODELS)
def test_the_sites_of_the_table_are_those_entries(name: str) -> None:
    """actscope's own places. A final norm that it cannot name is refused, never another module."""
    model = model_of(name)
    assert len(blocks(model)) == N_LAYERS
    sites = ["embed", *(f"layers.{i}.resid_{point}" for i in range(N_LAYERS) for point in ("pre", "post"))]
    places = {site: locate(model, Site.parse(site)) for site in sites}
    try:
        places["final_norm"] = locate(model, Site.parse("final_norm"))
    except SiteError:
        assert name.startswith(("opt with", *FROM_THE_FIRST_OUTPUT))
    seen, states = seen_in_a_pass(model, places)
    shift = 1 if name in FROM_THE_FIRST_OUTPUT else 0
    assert torch.equal(states[0], seen["embed"]) == (shift == 0)
    for i in range(N_LAYERS - shift):
        assert torch.equal(states[i], seen[f"layers.{i + shift}.resid_pre"])
    for i in range(1 - shift, N_LAYERS):
        assert torch.equal(states[i], seen[f"layers.{i + shift - 1}.resid_post"])
    if "final_norm" in seen:
        assert torch.equal(states[-1], seen["final_norm"])
    assert torch.equal(states[-1], seen[f"layers.{N_LAYERS - 1}.resid_post"]) == (not MODELS[name][2])


def test_opts_last_entry_has_the_width_of_its_projection() -> None:
    model = random_model("opt", {**_OPT, "word_embed_proj_dim": 16})
    states = model(torch.arange(3, 15)[None], output_hidden_states=True).hidden_states
    assert [state.shape[-1] for state in states] == [32, 32, 32, 16]


def test_the_page_names_the_models_that_were_checked() -> None:
    page = PAGE.read_text()
    for word in ("Llama", "GPT-2", "Gemma 2", "Falcon", "BERT", "`do_layer_norm_before=False`", "Mamba-2", "RWKV"):
        assert word in page
