"""Locates sites in a model: the module whose input or output is the row of a site."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from actscope.errors import SiteError
from actscope.sites import INPUT, INSTEAD, Site, has_point, in_model_order, is_named, items_of, match_modules, select
from actscope.taps.measured import BlockSum, Summand, SummandKind, kind_of
from actscope.taps.text_model import blocks, final_norm, has_blocks
from actscope.taps.text_model import first as _first
from actscope.taps.truth import Truth, TruthCheck

log = logging.getLogger("actscope.taps")

#: Names of these modules in the architectures of transformers. The output of an attention or MLP module is what it adds to
#: the residual stream, unless a norm follows it (`_norm_behind`). In BERT-like models that is the dense layer before the addition
#: and its norm; modules of BLOOM and MPT do the addition themselves, so it is their last layer.
_ADDING = {
    "attn_out": (
        "self_attn", "attn", "attention.output.dense", "attention", "self_attention.dense", "self_attention",
        "mixer", "temporal_block",
    ),
    "mlp_out": (
        "mlp.dense_4h_to_h", "mlp", "feed_forward", "ffn.down_proj", "ffn", "block_sparse_moe", "output.dense", "fc2", "mixer",
    ),
    "mixer_out": ("mamba", "linear_attn", "conv", "short_conv", "mixer", "temporal_block", "ssm"),
}  # fmt: skip
#: Norms behind the attention or the MLP, before the addition (Gemma 2 and 3, OLMo 2 and 3, GLM-4, EXAONE 4, AFMoE).
_NORMS_BEHIND = {
    "attn_out": ("post_self_attn_layernorm", "post_attention_layernorm"),
    "mlp_out": ("post_mlp_layernorm", "post_feedforward_layernorm"),
}
#: The norm at the end of a block, in post-norm models. That of the last block is the model's final norm.
_BLOCK_END_NORM = ("output.LayerNorm", "output_layer_norm")

#: What a forward pass showed, for each model that was checked (see `learn`).
_LEARNED: WeakKeyDictionary[nn.Module, Truth] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Location:
    """A module, and how the row is read at it.

    Attributes:
        module: The module.
        side: Whether the row is its input or its output.
        after: Module after which it runs where the row is taken, if it runs several times in a pass; else None.
        scale: Factor by which that is multiplied.
    """

    module: nn.Module
    side: Literal["input", "output"]
    after: nn.Module | None = None
    scale: float = 1.0


def resolve(model: nn.Module, selection: str, points: str | Sequence[str] = "resid_post") -> dict[Site, Location]:
    """Return the selected sites of a model and where each is read.

    Named sites come first, in model order, then modules in the order of `named_modules`. Of `points`, which complete items that
    name only layers, a block may lack some (a hybrid has attention in some blocks, a mixer in others): those are left out with
    a warning. Raises SiteError, suggesting near misses, for another site or module that the model lacks, and if all are lacking.
    """
    paths = [path for path, _ in model.named_modules()]
    named: set[Site] = set()
    implied: set[Site] = set()
    modules: list[Site] = []
    for item in items_of(selection):
        if is_named(item) and not (item in paths and not has_blocks(model)):
            (named if has_point(item) else implied).update(select(item, len(blocks(model)), points))
        else:
            suffix = INPUT if item.endswith(INPUT) else ""
            modules += [Site(None, path + suffix) for path in match_modules(item, paths)]
    found = {site: locate(model, site) for site in named} | _located(model, implied - named)
    return {site: found[site] for site in in_model_order(found)} | {s: locate(model, s) for s in dict.fromkeys(modules)}


def _located(model: nn.Module, sites: set[Site]) -> dict[Site, Location]:
    """Locate sites of which blocks may lack some, and log those. Raises SiteError if there are none at all."""
    found: dict[Site, Location] = {}
    lacking: dict[Site, SiteError] = {}
    for site in in_model_order(sites):
        try:
            found[site] = locate(model, site)
        except SiteError as error:
            lacking[site] = error
    if lacking and not found:
        raise next(iter(lacking.values()))
    silent = {Site(s.layer, INSTEAD[s.point]) for s in found if s.point in INSTEAD}
    told = [error for site, error in lacking.items() if site not in silent]
    if told:
        log.warning("%d of %d sites are left out, first %s", len(told), len(sites), told[0])
    return found


def locate(model: nn.Module, site: Site) -> Location:
    """Return the module and side at which `site` is read. Raises SiteError if the model has no such site."""
    if site.is_module:
        return _locate_module(model, site)
    truth = _LEARNED.get(model)
    if truth is not None and site in truth.refused:
        raise SiteError(f"{site}: {type(model).__name__} has no such point, because {truth.refused[site]}")
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
    if truth is None or _adds_before_norm(block):
        return _adding_by_name(block, site)
    return _adding_by_value(block, site, truth.sums[site.layer])


def learn(model: nn.Module, run: Callable[[], object]) -> None:
    """Hold the points of a model against one forward pass. From then on its sites are located by what that showed.

    Args:
        model: A model with recognizable blocks.
        run: Runs the model once over a few tokens. It is called without gradients.
    """
    check = truth_check(model)
    check.attach()
    try:
        with torch.no_grad():
            run()
    finally:
        check.detach()
    _LEARNED[model] = check.truth()


def adopt(model: nn.Module, sums: Sequence[BlockSum | None]) -> None:
    """Locate what blocks add by what they, first to last, were found to add in another way (see `measured.explain`)."""
    _LEARNED[model] = Truth(sums, {}, training=False)


def truth_check(model: nn.Module) -> TruthCheck:
    """Return a check of a model's points by one of its passes. Raises SiteError for a model without recognizable blocks."""
    layers = blocks(model)
    try:
        norm, after = final_norm(model)
    except SiteError:
        norm, after = None, None
    if norm is not None and any(module is norm for module in layers[-1].modules()):
        norm = None  # it makes the last block's output, rather than take it
    return TruthCheck(layers, norm, [named_summands(block) for block in layers], norm_repeats=after is not None)


def is_learned(model: nn.Module) -> bool:
    """Return whether a model's points were held against a pass of it."""
    return model in _LEARNED


def refusals(model: nn.Module, places: Mapping[Site, Location], truth: Truth) -> dict[Site, str]:
    """Return which of these locations do not give what their sites' names say, and why.

    Args:
        model: The model.
        places: Sites and where they are read.
        truth: What a pass of the model showed.
    """
    layers = blocks(model)
    found = {site: why for site, why in truth.refused.items() if site in places}
    for site, place in places.items():
        if site.layer is None or site.point not in _ADDING or _adds_before_norm(layers[site.layer]):
            continue
        try:
            right = _adding_by_value(layers[site.layer], site, truth.sums[site.layer])
        except SiteError as error:
            found[site] = str(error).removeprefix(f"{site}: ")
        else:
            if not _same_place(layers[site.layer], right, place, truth.sums[site.layer]):
                path = _path_of(layers[site.layer], right.module)
                found[site] = f"what the block adds is {right.scale:g} x {path}; name that module by its path"
        if site in found and truth.training:
            found[site] += " (the model is in training mode: call its eval() first)"
    return found


def _same_place(block: nn.Module, right: Location, place: Location, measured: BlockSum | None) -> bool:
    """Return whether a location gives what was measured: the same module, or one that gave the same values."""
    path, wanted = _path_of(block, place.module), _path_of(block, right.module)
    same = path == wanted or (measured is not None and measured.same_output.get(path) == wanted)
    return same and place.side == right.side and abs(place.scale - right.scale) <= 1e-5 * abs(right.scale)


def _path_of(block: nn.Module, module: nn.Module) -> str:
    return next((path for path, one in block.named_modules() if one is module), "")


def _adds_before_norm(block: nn.Module) -> bool:
    """Return whether a norm ends the block, on the stream itself (BERT): its sum is the norm's input."""
    return _first(block, _BLOCK_END_NORM) is not None


def named_summands(block: nn.Module) -> list[Summand]:
    """Return what a block adds by the names of its modules; empty if they do not tell."""
    found: list[Summand] = []
    points: tuple[SummandKind, ...] = ("attn_out", "mixer_out", "mlp_out")
    for point in points:
        module = _named(block, point)
        if module is not None:
            found.append(Summand(_path_of(block, module), _factor(block), point))
    return found


def _named(block: nn.Module, point: str) -> nn.Module | None:
    """Return the module whose output is a point of a block, by its name; by its class where the name is that of any mixer."""
    for name in _ADDING[point]:
        core = _first(block, [name])
        if core is not None and kind_of(name.partition(".")[0], type(core).__name__) == point:
            return _norm_behind(block, point) or core
    return None


def _factor(block: nn.Module) -> float:
    return float(getattr(block, "residual_multiplier", 1.0))


def _adding_by_name(block: nn.Module, site: Site) -> Location:
    """Return the module whose output a block adds to the stream, by the names that transformers' architectures use."""
    found = _named(block, site.point)
    if found is None:
        children = ", ".join(name for name, _ in block.named_children())
        raise SiteError(f"{site}: expected a child named one of {', '.join(_ADDING[site.point])}, found {children}")
    return Location(found, "output", scale=_factor(block))


def _norm_behind(block: nn.Module, point: str) -> nn.Module | None:
    """Return the norm between a block's attention or MLP and the addition, or None.

    Llama calls the norm before its MLP `post_attention_layernorm`. It is a norm behind the attention only if the MLP has a
    norm of its own.
    """
    has_own = _first(block, _NORMS_BEHIND["mlp_out"]) is not None
    return _first(block, _NORMS_BEHIND.get(point, ())) if has_own else None


def _adding_by_value(block: nn.Module, site: Site, measured: BlockSum | None) -> Location:
    """Return the one module whose output a block was seen to add to the stream. Raises SiteError, with the reason, otherwise."""
    kind = type(block).__name__
    if measured is None:
        raise SiteError(
            f"{site}: what {kind} adds to the stream is no sum of outputs of its modules; use resid_pre and resid_post, or name "
            "modules by their paths"
        )
    if measured.stream_scale != 1:
        raise SiteError(
            f"{site}: {kind} multiplies the stream by {measured.stream_scale:g} besides adding to it, so that resid_pre and what "
            "it adds are not resid_post; use resid_pre and resid_post, or name modules by their paths"
        )
    found = [summand for summand in measured.summands if summand.kind == site.point]
    module = _first(block, [found[0].path]) if len(found) == 1 else None
    if module is not None:
        return Location(module, "output", scale=found[0].scale)
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
