"""The config of a GGUF file's model: what transformers reads, completed or refused where it leaves out what changes the result.

transformers drops keys and tensors that its tables do not have, without a word. Some of them change every row of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope.engines.local.gguf_file import ROTARY_DIVISORS, GgufModelFile, Value
from actscope.engines.local.tokens import special_ids
from actscope.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Keys, without their architecture, that are set here in configs that have them.
_SET = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
#: Keys that change what a model computes and that no table of transformers has. "none" and 1 are the absence of it.
_REFUSED = (
    "rope.scaling.type", "rope.scaling.factor", "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias",
    "logit_scale", "embedding_scale", "residual_scale",
)  # fmt: skip
#: How Llama 3.1, 3.2 and 3.3 scale rotary frequencies, but for the factor (8 or 32), which is the largest divisor.
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
#: Architectures with a reader of their own in transformers, which takes all keys.
_OWN_READERS = frozenset(("qwen35", "qwen35moe", "gpt-oss", "gpt_oss", "lfm2"))
#: Architectures whose output matrix is the embedding although the file holds both.
_TIED_ANYWAY = ("falcon", "bloom")


def config_of(file: GgufModelFile, directory: str, name: str) -> PreTrainedConfig:
    """Return the config of a GGUF file `directory/name`, with its special tokens.

    Raises:
        EngineError: transformers would leave out a key or a tensor that changes what the model computes.
    """
    from transformers import AutoConfig

    config: PreTrainedConfig = AutoConfig.from_pretrained(directory, gguf_file=name)
    for token, value in special_ids(file).items():
        setattr(config, token, value)
    config._name_or_path = ""
    scaled = [t.name for t in file.tensors if t.name.startswith("rope_") and t.name != ROTARY_DIVISORS]
    if scaled:
        raise _left_out(file, f"the tensor {scaled[0]!r}, which scales its rotary frequencies")
    if file.architecture not in _OWN_READERS:
        _complete(file, config)
    if file.rotary_divisors:
        _scale_rotation(file, config)
    return config


def check_whole(file: GgufModelFile, model: PreTrainedModel) -> None:
    """Compare the number of weights in a file with those of the model that transformers makes of its metadata.

    Args:
        file: The GGUF file.
        model: The model, which may be on the meta device.

    Raises:
        EngineError: The file has too few, or has some that would be left out.
    """
    described = sum(p.numel() for p in model.parameters()) + len(file.rotary_divisors)
    if described > file.n_elements:
        raise EngineError(
            f"{file.path}: its metadata describes a model of {described:,} parameters, its tensors have {file.n_elements:,}"
        )
    doubled = sum(t.n_elements for t in file.tensors if t.name == "output.weight" and file.architecture in _TIED_ANYWAY)
    if described < file.n_elements - doubled and file.architecture not in _OWN_READERS:
        raise _left_out(file, f"{file.n_elements - described:,} weights more than {type(model).__name__} has")


def _complete(file: GgufModelFile, config: PreTrainedConfig) -> None:
    own: dict[str, Value] = {
        key.removeprefix(f"{file.architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{file.architecture}.")
    }
    for key, attribute in _SET.items():
        if key in own and not hasattr(config, attribute):
            raise _left_out(file, f"{file.architecture}.{key} = {own[key]!r} in its metadata")
        if key in own:
            setattr(config, attribute, own[key])
    for key in _REFUSED:
        if own.get(key, "none") not in ("none", 1):
            raise _left_out(file, f"{file.architecture}.{key} = {own[key]!r} in its metadata")
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope:  # one for all layers
        rope["rope_theta"] = own.get("rope.freq_base", rope["rope_theta"])
        _check_rotated(file, config, rope)


def _check_rotated(file: GgufModelFile, config: PreTrainedConfig, rope: dict[str, float]) -> None:
    """Compare how many dimensions of a head are rotated with what transformers will rotate."""
    stated = file.number(f"{file.architecture}.rope.dimension_count")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    if stated is not None and stated != int(head * share):
        raise _left_out(file, f"{stated} rotated dimensions a head, where transformers rotates {int(head * share)},")


def _scale_rotation(file: GgufModelFile, config: PreTrainedConfig) -> None:
    """Scale the rotary frequencies as Llama 3.1 and later do, if that is what the file's divisors say.

    Source of the formula: transformers' own `llama3`, against which the file is compared.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = getattr(config, "rope_parameters", None)
    found = torch.tensor(file.rotary_divisors, dtype=torch.float64)
    if isinstance(rope, dict) and "rope_theta" in rope:
        plain = rope["rope_theta"] ** -(torch.arange(len(found), dtype=torch.float64) / len(found))
        config.rope_parameters = rope | _LLAMA_3 | {"rope_type": "llama3", "factor": float(found.max())}
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        if scaled.shape == found.shape and torch.allclose(plain / found, scaled.double(), rtol=1e-4, atol=0):
            return
    raise _left_out(
        file, f"the tensor {ROTARY_DIVISORS!r}, which scales rotary frequencies in another way than Llama 3 does"
    )


def _left_out(file: GgufModelFile, what: str) -> EngineError:
    return EngineError(
        f"{file.path}: it has {what}; transformers' reader of GGUF files leaves that out, and the model would compute something "
        "else. Give the model's directory or Hugging Face id instead"
    )
