"""The text model's blocks and final norm are found in every kind of architecture, and nothing else is taken for them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartForCausalLM,
    LlamaConfig,
    WhisperForConditionalGeneration,
)

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import locate
from actscope.taps.rows import RowTaps, tensor_of
from actscope.taps.text_model import blocks, final_norm, text_config, text_model, unwrapped

IDS = torch.arange(3, 11)[None]
_TOKENS: dict[str, object] = dict(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
_TEXT: dict[str, object] = dict(
    _TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64,
)  # fmt: skip
_VISION: dict[str, object] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=8, depth=3,
    num_heads=4, embed_dim=32, out_hidden_size=32,
)  # fmt: skip
_BART: dict[str, object] = dict(
    _TOKENS, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, decoder_start_token_id=2,
)  # fmt: skip
_T5: dict[str, object] = dict(
    vocab_size=64,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=4,
    decoder_start_token_id=0,
)
_OPT: dict[str, object] = dict(
    _TOKENS, model_type="opt", hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
    word_embed_proj_dim=32, max_position_embeddings=64,
)  # fmt: skip


def config_of(architecture: str, **settings: object) -> Any:
    """Settings that are None are left to the architecture."""
    given = {name: value for name, value in settings.items() if value is not None and name != "model_type"}
    return AutoConfig.for_model(architecture, **given)


def built(model: nn.Module) -> nn.Module:
    """In evaluation mode, with norms that are no identities."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def random_model(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    return built(kind.from_config(config) if hasattr(kind, "from_config") else kind(config))


def values_at(model: nn.Module, sites: list[Site], **inputs: Any) -> tuple[list[Tensor], Any]:
    """What is read at these sites in one pass, and what the model returns."""
    seen: dict[int, Tensor] = {}

    def take(number: int, value: object) -> None:
        seen[number] = tensor_of(value).clone()

    taps = RowTaps({site: locate(model, site) for site in sites}, take)
    taps.attach()
    with torch.no_grad():
        out = model(**inputs)
    taps.detach()
    return [seen[n] for n in range(len(sites))], out


def check_against_hidden_states(model: nn.Module, inputs: Mapping[str, Any], hidden: str = "hidden_states") -> None:
    """transformers' own hidden states are the inputs of the blocks, and then the final norm's output."""
    n = len(blocks(model))
    sites = [*(Site(layer, "resid_pre") for layer in range(n)), Site(None, "final_norm"), Site(None, "embed")]
    (*found, normed, embed), out = values_at(model, sites, **inputs, output_hidden_states=True)
    expected = out[hidden]
    assert len(expected) == n + 1
    for layer, value in enumerate(found):
        torch.testing.assert_close(value, expected[layer], rtol=0, atol=0, msg=f"block {layer}")
    torch.testing.assert_close(normed, expected[-1], rtol=0, atol=0, msg="final_norm")
    torch.testing.assert_close(embed, expected[0], rtol=0, atol=0)


#: Multimodal architectures by model type: path of the text model below the model, and its settings. Both towers have 3 blocks.
_MROPE: dict[str, object] = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
MULTIMODAL: dict[str, tuple[str, dict[str, object]]] = {
    "qwen2_vl": ("model.language_model", _MROPE),
    "qwen2_5_vl": ("model.language_model", _MROPE),
    "qwen3_vl": ("model.language_model", {}),
    "llama4": ("language_model.model", {}),
    "gemma3": ("model.language_model", {}),
    "gemma4": ("model.language_model", {}),
    "llava": ("model.language_model", {}),
    "idefics3": ("model.text_model", {}),
    "mllama": ("model.language_model", {}),
    "mistral3": ("model.language_model", {}),
    "paligemma": ("model.language_model", {}),
    "internvl": ("model.language_model", {}),
    "kosmos-2": ("text_model.model", {}),
}
#: Encoder-decoders by model type, with their settings: 2 blocks in the encoder, 3 in the decoder.
ENCODER_DECODERS: dict[str, dict[str, object]] = {
    "t5": _T5,
    "umt5": _T5,
    "bart": _BART,
    "mbart": _BART,
    "pegasus": _BART,
    "marian": _BART,
    "m2m_100": _BART,
    "blenderbot": _BART,
    "blenderbot-small": _BART,
}
#: Models with each name of a final norm, and each place of it, by model type.
NORMS: dict[str, dict[str, object]] = {
    "llama": {},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    "falcon": {},
    "bloom": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3},
    "mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": 32},
    "xglm": {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48},
    "opt": _OPT,
    "biogpt": {},
    "ctrl": {"n_embd": 32, "n_layer": 3, "n_head": 4, "dff": 48},
    "openai-gpt": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "lfm2": {},
    "nanochat": {},
    "bert": {"is_decoder": True},
    "roberta-prelayernorm": {"is_decoder": True},
    "megatron-bert": {"is_decoder": True},
    "xlm-roberta-xl": {"is_decoder": True},
    "modernbert-decoder": {},
    "recurrent_gemma": {},
    "xlnet": {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "max_position_embeddings": None},
}


def multimodal(architecture: str) -> nn.Module:
    text = {**_TEXT, **MULTIMODAL[architecture][1]}
    vision = {**_VISION, **({"head_dim": 8} if architecture == "gemma4" else {})}
    return random_model(AutoModelForImageTextToText, config_of(architecture, text_config=text, vision_config=vision))


def causal(architecture: str, **settings: object) -> nn.Module:
    return random_model(AutoModelForCausalLM, config_of(architecture, **{**_TEXT, **settings}))


def llama(n_layers: int = 4) -> Any:
    return causal("llama", num_hidden_layers=n_layers)


@pytest.mark.parametrize("architecture", MULTIMODAL)
def test_a_multimodal_model_gives_its_text_tower(architecture: str) -> None:
    model = multimodal(architecture)
    tower = model.get_submodule(MULTIMODAL[architecture][0])
    assert blocks(model) == list(tower.layers)  # type: ignore[arg-type]
    check_against_hidden_states(tower, {"input_ids": IDS})


@pytest.mark.parametrize("kind", ["blip-2", "instructblip"])
@pytest.mark.parametrize("text", ["opt", "t5"])
def test_a_language_model_behind_a_querying_transformer_is_found_and_not_the_vision_tower(kind: str, text: str) -> None:
    config = config_of(
        kind,
        text_config=_OPT if text == "opt" else dict(_T5, model_type="t5"),
        vision_config=_VISION,
        qformer_config=dict(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, encoder_hidden_size=32,
            vocab_size=64,
        ),
    )  # fmt: skip
    model = random_model(AutoModelForImageTextToText, config)
    path = "language_model.model.decoder.layers" if text == "opt" else "language_model.decoder.block"
    assert blocks(model) == list(model.get_submodule(path))  # type: ignore[call-overload]
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS[:, :5]} if text == "t5" else {})
    language: Any = model.get_submodule("language_model")
    check_against_hidden_states(language, inputs, "hidden_states" if text == "opt" else "decoder_hidden_states")


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_an_encoder_decoder_gives_its_decoder(architecture: str) -> None:
    model: Any = random_model(AutoModelForSeq2SeqLM, config_of(architecture, **ENCODER_DECODERS[architecture]))
    assert len(blocks(model)) == 3
    check_against_hidden_states(model, {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}, "decoder_hidden_states")


@pytest.mark.parametrize("architecture", ["t5", "bart", "pegasus"])
def test_the_encoder_of_an_encoder_decoder_is_a_model_of_its_own(architecture: str) -> None:
    model: Any = random_model(AutoModelForSeq2SeqLM, config_of(architecture, **ENCODER_DECODERS[architecture]))
    assert len(blocks(model.get_encoder())) == 2
    check_against_hidden_states(model.get_encoder(), {"input_ids": IDS})


def test_whisper_gives_its_text_decoder() -> None:
    settings = dict(_BART, num_mel_bins=8, max_source_positions=16, max_target_positions=64)
    model = random_model(WhisperForConditionalGeneration, config_of("whisper", **settings))
    inputs = {"input_features": torch.randn(1, 8, 32), "decoder_input_ids": IDS}
    check_against_hidden_states(model, inputs, "decoder_hidden_states")


def test_a_decoder_alone_of_an_encoder_decoder_is_found() -> None:
    check_against_hidden_states(
        random_model(BartForCausalLM, config_of("bart", **_BART)), {"input_ids": IDS, "use_cache": False}
    )


def test_florence_2_gives_the_decoder_of_its_language_model() -> None:
    vision = dict(
        depths=[1, 1], embed_dim=[16, 32], num_heads=[2, 4], num_groups=[2, 4], patch_size=[7, 3], patch_stride=[4, 2],
        patch_padding=[3, 1], patch_prenorm=[False, True], window_size=4, projection_dim=32,
    )  # fmt: skip
    model = random_model(
        AutoModelForImageTextToText,
        config_of("florence2", text_config=dict(_BART, model_type="bart"), vision_config=vision),
    )
    assert blocks(model) == list(model.get_submodule("model.language_model.decoder.layers"))  # type: ignore[call-overload]


@pytest.mark.parametrize("architecture", NORMS)
def test_the_final_norm_is_the_one_whose_output_the_model_returns(architecture: str) -> None:
    model: Any = causal(architecture, **NORMS[architecture])
    with torch.no_grad():
        expected = model.base_model(input_ids=IDS).last_hidden_state
    (found,), _ = values_at(model, [Site(None, "final_norm")], input_ids=IDS)
    found = found.transpose(0, 1) if architecture == "xlnet" else found
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_post_norm_model_ends_with_the_norm_of_its_last_block() -> None:
    """OPT 350M, whose stack has no norm of its own."""
    model: Any = causal("opt", **_OPT, do_layer_norm_before=False)
    assert final_norm(model) == (model.model.decoder.layers[-1].final_layer_norm, None)
    check_against_hidden_states(model, {"input_ids": IDS})


def test_a_model_without_a_final_norm_is_refused_by_name() -> None:
    model = llama()
    del model.model.norm
    with pytest.raises(SiteError, match=r"final_norm: LlamaModel runs no norm after the blocks in layers"):
        final_norm(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "bert", "gemma3_text"])
@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModel])
def test_a_model_with_a_task_head_or_with_none_has_the_same_blocks(architecture: str, head: Any) -> None:
    settings = {**_TEXT, **(_OPT if architecture == "opt" else {})}
    check_against_hidden_states(random_model(head, config_of(architecture, **settings)), {"input_ids": IDS})


def test_deleted_layers_are_gone_and_the_rest_is_numbered_as_it_runs() -> None:
    model = llama(4)
    kept = [model.model.layers[0], model.model.layers[3]]
    model.model.layers = nn.ModuleList(kept)
    assert blocks(model) == kept and text_config(model).num_hidden_layers == 4
    check_against_hidden_states(model, {"input_ids": IDS})


def test_a_tower_of_another_length_than_its_config_says_is_found_beside_one_that_has_it() -> None:
    model = multimodal("qwen2_vl")
    tower: Any = model.get_submodule("model.language_model")
    del tower.layers[1]
    assert blocks(model) == list(tower.layers) and len(blocks(model)) == 2
    check_against_hidden_states(tower, {"input_ids": IDS})


def test_a_config_with_fewer_layers_runs_fewer_where_the_model_looks_at_it() -> None:
    """Llama runs `layers[: config.num_hidden_layers]`, GPT-2 all that it has."""
    model, other = llama(4), causal("gpt2", num_hidden_layers=3)
    model.config.num_hidden_layers = 2
    other.config.n_layer = 2  # type: ignore[union-attr]
    assert blocks(model) == list(model.model.layers[:2])
    check_against_hidden_states(model, {"input_ids": IDS})
    assert len(blocks(other)) == 3
    check_against_hidden_states(other, {"input_ids": IDS, "use_cache": False})


class _Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(32), nn.Linear(32, 32)


@pytest.mark.parametrize("name", ["hyper_connections", "per_layer_projections", "rotary_embs"])
def test_a_list_with_a_part_for_each_layer_is_not_taken_for_the_blocks(name: str) -> None:
    model = llama(3)
    expected = list(model.model.layers)
    setattr(model.model, name, nn.ModuleList(_Projection() for _ in range(3)))
    setattr(model, name, nn.ModuleList(nn.Linear(32, 32) for _ in range(3)))
    assert blocks(model) == expected
    del model.model.layers
    with pytest.raises(SiteError, match="expected one list of 3 blocks of the text model, found none; name modules"):
        blocks(model)


def test_one_module_that_stands_for_several_blocks_is_refused() -> None:
    model = llama(3)
    model.model.layers[1] = model.model.layers[2]
    with pytest.raises(SiteError, match=r"one module of layers runs several times in a pass"):
        blocks(model)


@pytest.mark.parametrize(
    ("architecture", "settings", "why"),
    [
        ("albert", {"embedding_size": 16, "inner_group_num": 1}, "share one module"),
        ("xlm", {"emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64}, "found none"),
        ("reformer", {"axial_pos_embds": False, "attention_head_size": 8, "feed_forward_size": 48}, "keep two streams"),
        (
            "funnel",
            dict(d_model=32, block_sizes=[1, 1], n_head=4, d_head=8, d_inner=48, num_hidden_layers=None),
            "groups of layers",
        ),
    ],
)
def test_a_model_whose_blocks_cannot_be_numbered_is_refused_with_the_reason(
    architecture: str, settings: dict[str, object], why: str
) -> None:
    model = random_model(AutoModelForMaskedLM, config_of(architecture, **{**_TEXT, **settings}))
    with pytest.raises(SiteError, match=rf"{why}.*name modules by their paths"):
        blocks(model)


class _Tower(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4) for _ in range(n))


class _TwoTowers(nn.Module):
    """A model that does not say which tower reads text."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=3)
        self.front, self.back = _Tower(one), _Tower(other)


def test_two_towers_of_a_model_that_does_not_say_which_reads_text_are_told_apart_by_the_config_or_refused() -> None:
    assert len(blocks(_TwoTowers(2, 3))) == 3
    with pytest.raises(SiteError, match=r"found front\.layers \(3\), back\.layers \(3\)"):
        blocks(_TwoTowers(3, 3))
    with pytest.raises(SiteError, match=r"found front\.layers \(2\), back\.layers \(4\)"):
        blocks(_TwoTowers(2, 4))


class _Wrapper(nn.Module):
    """As PEFT's wrapper looks: it passes on every attribute that it does not have."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.base_model, self.peft_config = inner, {"default": None}

    def get_base_model(self) -> nn.Module:
        return self.base_model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


def test_wrappers_are_looked_through() -> None:
    model = llama(3)
    inner, expected = model.model, list(model.model.layers)
    wrappers: list[Any] = [_Wrapper(model), torch.compile(model, backend="eager"), _Wrapper(_Wrapper(model))]
    for wrapped in wrappers:
        assert unwrapped(wrapped) is model
        assert blocks(wrapped) == expected
        assert text_model(wrapped) is inner


def test_a_copy_has_blocks_of_its_own() -> None:
    model = llama(3)
    other = copy.deepcopy(model)
    assert blocks(other) == list(other.model.layers) != blocks(model)


class _Fused(nn.Module):
    """A block that leaves the addition to the next norm, as in vLLM."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(32), _Projection()

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden)
        result: Tensor = self.mlp(hidden)
        return result


class _HeadNorms(nn.Module):
    """A model that runs its last norm outside of its pass, on the rows that are sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=2)
        self.layers, self.norm = nn.ModuleList(_Fused() for _ in range(2)), nn.LayerNorm(32)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.norm(hidden)
        return result


def test_a_norm_that_no_pass_runs_on_all_rows_is_not_the_final_norm() -> None:
    with pytest.raises(SiteError, match="_HeadNorms runs no norm after the blocks in layers"):
        final_norm(_HeadNorms())
