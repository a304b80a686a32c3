"""Where a model keeps its sites: blocks, norms and the module whose input or output is the row we mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from actscope.errors import SiteError
from actscope.sites import Site

#: Names under which the architectures of transformers keep what we look for.
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True, slots=True)
class Location:
    """A module, and whether the row is what goes into it or what comes out of it."""

    module: nn.Module
    side: Literal["input", "output"]


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's decoder blocks, first to last.

    They are the outermost list of `config.num_hidden_layers` modules. Raises SiteError where there is no such list,
    or more than one at the same depth (an encoder beside a decoder).
    """
    wanted = text_config(model).num_hidden_layers
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    shallowest = min((name.count(".") for name, _ in lists), default=0)
    outermost = [(name, m) for name, m in lists if name.count(".") == shallowest]
    if len(outermost) != 1:
        raise SiteError(
            f"{type(model).__name__}: expected one list of {wanted} decoder blocks, found "
            f"{', '.join(name for name, _ in outermost) or 'none'}; this architecture is not supported yet"
        )
    return list(outermost[0][1])


def text_config(model: nn.Module) -> Any:
    """The config of the language model, also inside a multimodal one."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def locate(model: nn.Module, site: Site) -> Location:
    """The module and side where `site` is read. Raises SiteError when the model has no such place."""
    layers = blocks(model)
    if site.point == "embed":
        return Location(layers[0], "input")
    if site.point == "final_norm":
        return Location(_final_norm(model, layers), "output")
    if site.layer is None or site.layer >= len(layers):
        raise SiteError(f"{site}: this model has layers 0 to {len(layers) - 1}")
    block = layers[site.layer]
    if site.point.startswith("resid"):
        return Location(block, "input" if site.point == "resid_pre" else "output")
    names = _ATTENTION if site.point == "attn_out" else _MLP
    found = next((getattr(block, name) for name in names if hasattr(block, name)), None)
    if found is None:
        children = ", ".join(name for name, _ in block.named_children())
        raise SiteError(f"{site}: expected a child named one of {', '.join(names)}, found {children}")
    return Location(found, "output")


def _final_norm(model: nn.Module, layers: list[nn.Module]) -> nn.Module:
    """The norm that stands beside the list of blocks."""
    for parent in model.modules():
        if any(isinstance(child, nn.ModuleList) and list(child) == layers for child in parent.children()):
            norm = next((getattr(parent, name) for name in _FINAL_NORM if hasattr(parent, name)), None)
            if isinstance(norm, nn.Module):
                return norm
    raise SiteError(f"final_norm: expected one of {', '.join(_FINAL_NORM)} beside the blocks of {type(model).__name__}")


def hidden_of(value: Any) -> Tensor:
    """The hidden states in what a module takes or returns: the tensor itself, or the first of a tuple."""
    hidden: Tensor = value[0] if isinstance(value, tuple | list) else value
    return hidden
