"""Locates sites in a model: the module whose input or output is the row of a site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from actscope.errors import SiteError
from actscope.sites import INPUT, Site, in_model_order, is_named, items_of, match_modules, select
from actscope.taps.measured import BlockSum, measure
from actscope.taps.text_model import blocks, final_norm, has_blocks
from actscope.taps.text_model import first as _first

#: Names of these modules in the architectures of transformers. The output of an attention or MLP module is what it adds to
#: the residual stream, unless a norm follows it (`_norm_behind`). In BERT-like models that is the dense layer before the addition
#: and its norm; modules of BLOOM and MPT do the addition themselves, so it is their last layer.
_ADDING = {
    "attn_out": ("self_attn", "attn", "attention.output.dense", "attention", "self_attention.dense", "self_attention"),
    "mlp_out": (
        "mlp.dense_4h_to_h", "mlp", "feed_forward", "ffn.down_proj", "ffn", "block_sparse_moe", "output.dense",
    ),
}  # fmt: skip
#: Norms behind the attention or the MLP, before the addition (Gemma 2 and 3, OLMo 2 and 3, GLM-4, EXAONE 4, AFMoE).
_NORMS_BEHIND = {
    "attn_out": ("post_self_attn_layernorm", "post_attention_layernorm"),
    "mlp_out": ("post_mlp_layernorm", "post_feedforward_layernorm"),
}
#: The norm at the end of a block, in post-norm models. That of the last block is the model's final norm.
_BLOCK_END_NORM = ("output.LayerNorm", "output_layer_norm")

#: What the blocks add to the stream, for each model that was measured (see `learn`).
_LEARNED: WeakKeyDictionary[nn.Module, list[BlockSum | None]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Location:
    """A module, and whether the row is its input or its output.

    Attributes:
        module: The module.
        side: Whether the row is its input or its output.
        after: Module after which it runs where the row is taken, if it runs several times in a pass; else None.
    """

    module: nn.Module
    side: Literal["input", "output"]
    after: nn.Module | None = None


def resolve(model: nn.Module, selection: str, points: str | Sequence[str] = "resid_post") -> dict[Site, Location]:
    """Return the selected sites of a model and where each is read.

    Named sites come first, in model order, then modules in the order of `named_modules`. Raises SiteError, suggesting
    near misses, for a site or module that the model lacks.
    """
    paths = [path for path, _ in model.named_modules()]
    named: set[Site] = set()
    modules: list[Site] = []
    for item in items_of(selection):
        if is_named(item) and not (item in paths and not has_blocks(model)):
            named.update(select(item, len(blocks(model)), points))
        else:
            suffix = INPUT if item.endswith(INPUT) else ""
            modules += [Site(None, path + suffix) for path in match_modules(item, paths)]
    return {site: locate(model, site) for site in (*in_model_order(named), *dict.fromkeys(modules))}


def locate(model: nn.Module, site: Site) -> Location:
    """Return the module and side at which `site` is read. Raises SiteError if the model has no such site."""
    if site.is_module:
        return _locate_module(model, site)
    layers = blocks(model)
    if site.point == "embed":
        return Location(layers[0], "input")
    if site.point == "final_norm":
        norm, after = final_norm(model)
        return Location(norm, "output", after)
    if site.layer is None or site.layer >= len(layers):
        raise SiteError(f"{site}: this model has layers 0 to {len(layers) - 1}")
    block = layers[site.layer]
    if site.point.startswith("resid"):
        return Location(block, "input" if site.point == "resid_pre" else "output")
    if site.point not in _ADDING:
        raise SiteError(f"{site}: expected a point of a block, one of resid_pre, resid_post, {', '.join(_ADDING)}")
    learned = _LEARNED.get(model)
    if learned is None or _first(block, _BLOCK_END_NORM) is not None:
        return Location(_adding_by_name(block, site), "output")
    return Location(_adding_by_value(block, site, learned[site.layer]), "output")


def learn(model: nn.Module, run: Callable[[], object]) -> None:
    """Measure what each block adds to the stream, so that `attn_out` and `mlp_out` of this model are located by values.

    Args:
        model: A model with recognizable blocks.
        run: Runs the model once over a few tokens.
    """
    _LEARNED[model] = measure(blocks(model), run)


def _adding_by_name(block: nn.Module, site: Site) -> nn.Module:
    """Return the module whose output a block adds to the stream, by the names that transformers' architectures use."""
    names = _ADDING[site.point]
    found = _norm_behind(block, site.point) or _first(block, names)
    if found is None:
        children = ", ".join(name for name, _ in block.named_children())
        raise SiteError(f"{site}: expected a child named one of {', '.join(names)}, found {children}")
    factor = getattr(block, "residual_multiplier", 1)
    if factor != 1:
        raise SiteError(
            f"{site}: {type(block).__name__} adds {factor} times the output of a module to the stream; name the module by its "
            "path and multiply its rows"
        )
    return found


def _norm_behind(block: nn.Module, point: str) -> nn.Module | None:
    """Return the norm between a block's attention or MLP and the addition, or None.

    Llama calls the norm before its MLP `post_attention_layernorm`. It is a norm behind the attention only if the MLP has a
    norm of its own.
    """
    has_own = _first(block, _NORMS_BEHIND["mlp_out"]) is not None
    return _first(block, _NORMS_BEHIND[point]) if has_own else None


def _adding_by_value(block: nn.Module, site: Site, measured: BlockSum | None) -> nn.Module:
    """Return the one module whose output a block was seen to add to the stream. Raises SiteError, with the reason, otherwise."""
    kind = type(block).__name__
    if measured is None:
        raise SiteError(
            f"{site}: what {kind} adds to the stream is no sum of outputs of its modules; use resid_pre and resid_post, or name "
            "modules by their paths"
        )
    found = [summand for summand in measured.summands if summand.kind == site.point]
    module = _first(block, [found[0].path]) if len(found) == 1 and found[0].scale == 1 else None
    if module is not None:
        return module
    added = " + ".join(f"{s.scale:g} x {s.path} ({s.kind})" for s in measured.summands)
    raise SiteError(f"{site}: no output of one module of {kind}, which adds {added}; name modules by their paths")


def _locate_module(model: nn.Module, site: Site) -> Location:
    path = site.point.removesuffix(INPUT)
    found = dict(model.named_modules()).get(path)
    if found is None or not path:
        raise SiteError(f"site {site}: {type(model).__name__} has no module {path!r}")
    return Location(found, "input" if site.point.endswith(INPUT) else "output")


def hidden_of(value: Any) -> Tensor:
    """Return the hidden states in a module's input or output: the tensor itself, or the first item of a tuple or list."""
    hidden: Tensor = value[0] if isinstance(value, tuple | list) else value
    return hidden
