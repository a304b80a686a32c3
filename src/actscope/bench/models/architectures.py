"""The architectures of the installed transformers, and tiny random models of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

import torch
from torch import nn

from actscope.bench.models.configs import shrunk

Kind = Literal["causal", "multimodal", "encoder-decoder"]
KINDS: tuple[Kind, ...] = ("causal", "multimodal", "encoder-decoder")

_NORM = re.compile(r"norm|^ln|_ln|layer_scale|layerscale|layer_scalar", re.IGNORECASE)
#: Parameters whose values decide whether a recurrence is stable, and the biases of a router (vLLM's on a CPU leaves some out).
_DYNAMICS = re.compile(
    r"A_log|dt_|time_decay|time_first|time_mix|(^|\.)D$|rotary|inv_freq|sinks|recurrent_param|e_score_correction_bias"
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One entry of transformers' tables of models: a model type and how it is loaded."""

    name: str
    kind: Kind


def architectures(only: str = "") -> list[Architecture]:
    """Return the architectures, causal ones first. `only` has names or globs, such as "llama,qwen*"; "" selects all.

    A model type that several tables name is listed once, under the first.
    """
    from transformers.models.auto import modeling_auto as auto

    tables = {
        "causal": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,),
        "multimodal": (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
        "encoder-decoder": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,),
    }
    kinds: dict[str, Kind] = {}
    for kind in KINDS:
        for names in tables[kind]:
            for name in names:
                kinds.setdefault(name, kind)
    globs = [one.strip() for one in (only or "*").split(",")]
    return [Architecture(name, kind) for name, kind in kinds.items() if any(fnmatch(name, glob) for glob in globs)]


def build(
    architecture: Architecture, scale: int = 1, table: Mapping[str, Mapping[str, object]] | None = None
) -> nn.Module:
    """Make a tiny random model in float32, on the CPU, in evaluation mode. Raises what transformers raises if it cannot.

    Args:
        architecture: The architecture.
        scale: Factor of all widths.
        table: Fields of configurations by model type, besides those of `configs`.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[architecture.name]
    config = shrunk(config_class, decoder=architecture.kind == "causal", scale=scale, table=table)
    tables = {
        "causal": (auto.MODEL_FOR_CAUSAL_LM_MAPPING,),
        "multimodal": (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING),
        "encoder-decoder": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,),
    }
    classes = next(one for one in tables[architecture.kind] if config_class in one)
    found = classes[config_class]
    model_class = found[0] if isinstance(found, tuple) else found
    assert model_class is not None
    for part in config.sub_configs:  # a model of one part of the configuration, such as its text part
        if isinstance(own := getattr(config, part, None), model_class.config_class) and not isinstance(
            config, type(own)
        ):
            config = own
    transformers.set_seed(0)
    model: nn.Module = model_class(config).float()
    model.train(False).requires_grad_(False)
    randomize(model)
    return model


def randomize(model: nn.Module) -> None:
    """Give all norms, biases and layer scales values that are no identities, and all matrices a gain near 1.

    A norm, bias or scale that is left out of a row then shows. Values are seeded.
    """
    generator = torch.Generator().manual_seed(1)
    scalars = [(name, one) for name, one in model.named_buffers() if "scalar" in name and one.is_floating_point()]
    with torch.no_grad():
        for name, one in [*model.named_parameters(), *scalars]:
            if one.is_floating_point() and not _DYNAMICS.search(name):
                _fill(name, one, generator)


def _fill(name: str, one: torch.Tensor, generator: torch.Generator) -> None:
    parts = name.split(".")
    if parts[-1] == "bias" or parts[-1].endswith("_bias"):
        one.normal_(0, 0.2, generator=generator)
    elif any(_NORM.search(part) for part in parts[-2:]) and one.ndim <= 1:
        one.uniform_(0.5, 1.5, generator=generator)
    elif one.ndim == 2 and re.search(r"emb|wte|wpe|tok", name):
        one.normal_(0, 1, generator=generator)
    elif one.ndim >= 2:
        one.normal_(0, max(one.shape[-1], 1) ** -0.5, generator=generator)
