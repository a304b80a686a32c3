"""Checks of `actscope doctor MODEL`: whether the named points of a model are what they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actscope.cli.common.findings import Finding
from actscope.errors import ActscopeError, SiteError
from actscope.sites import Site

if TYPE_CHECKING:
    from torch import nn

    from actscope.engines.hf.loading import LoadedModel
    from actscope.taps.measured import BlockSum, Summand

#: Tokens of the measuring pass.
_TOKENS = 12
_POINTS = ("attn_out", "mlp_out")


def check(model: str) -> Iterator[Finding]:
    """Load a model, run it once over a few random tokens, and compare its points with what its blocks add to the stream."""
    from transformers.utils import logging

    from actscope.engines.hf.loading import load

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded = load(model)
    except ActscopeError as error:
        yield Finding("model", False, str(error), "name a hub id, a local directory or actscope/builtin")
        return
    yield Finding("model", True, f"{loaded.name}: {type(loaded.model).__name__}, {loaded.n_layers} blocks")
    yield from points_of(loaded)


def points_of(loaded: LoadedModel) -> Iterator[Finding]:
    """Measure the blocks of a loaded model. One finding for each kind of point that its blocks have."""
    from actscope.taps.anatomy import blocks
    from actscope.taps.measured import measure

    model, layers = loaded.model, blocks(loaded.model)
    sums = measure(layers, lambda: _run(loaded))
    unknown = [layer for layer, one in enumerate(sums) if one is None]
    if unknown:
        yield Finding(
            "points",
            False,
            f"layers {_ranges(unknown)}: the change of the stream is no sum of outputs of modules of the block",
            "use resid_pre and resid_post, or name modules by their paths",
        )
    for point in _POINTS:
        yield from _point(model, layers, sums, point)
    mixers = [layer for layer, one in enumerate(sums) if one and _of(one, "mixer_out")]
    if mixers:
        path = _of(sums[mixers[0]], "mixer_out")[0].path
        yield Finding("mixer_out", True, f"layers {_ranges(mixers)}: {path}", _name(model, layers[mixers[0]], path))


def _run(loaded: LoadedModel) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(int(loaded.config.vocab_size), (1, _TOKENS), generator=generator)
    loaded.model(input_ids=ids.to(loaded.device), use_cache=False)


@dataclass(slots=True)
class _Verdicts:
    """Layers by verdict, for one point."""

    right: list[int] = field(default_factory=list)
    wrong: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, list[int]] = field(default_factory=dict)
    remedy: str = ""


def _point(model: nn.Module, layers: list[nn.Module], sums: list[BlockSum | None], point: str) -> Iterator[Finding]:
    """Compare the module that actscope reads for a point with the summands of that kind."""
    verdicts = _Verdicts()
    for layer, (block, one) in enumerate(zip(layers, sums, strict=True)):
        summands = _of(one, point)
        if one is None or not summands:
            continue
        read = _read_path(model, block, layer, point)
        added = " + ".join(_term(summand) for summand in summands)
        if read is None:
            verdicts.refused.setdefault(added, []).append(layer)
        elif len(summands) == 1 and one.same_output.get(read) == summands[0].path and summands[0].scale == 1:
            verdicts.right.append(layer)
            continue
        else:
            verdicts.wrong.setdefault(f"{read} is read, but {added} is added", []).append(layer)
        verdicts.remedy = _name(model, block, summands[-1].path)
    yield from _findings(point, verdicts)


def _findings(point: str, verdicts: _Verdicts) -> Iterator[Finding]:
    if verdicts.right:
        yield Finding(point, True, f"layers {_ranges(verdicts.right)}: what is read is what is added")
    for what, where in verdicts.wrong.items():
        yield Finding(point, False, f"layers {_ranges(where)}: {what} to the stream", verdicts.remedy)
    for what, where in verdicts.refused.items():
        yield Finding(point, True, f"layers {_ranges(where)}: refused by name; {what} is added", verdicts.remedy)


def _of(one: BlockSum | None, kind: str) -> list[Summand]:
    return [summand for summand in one.summands if summand.kind == kind] if one is not None else []


def _term(summand: Summand) -> str:
    return summand.path if summand.scale == 1 else f"{summand.scale:g} x {summand.path}"


def _read_path(model: nn.Module, block: nn.Module, layer: int, point: str) -> str | None:
    """Return the path, below the block, of the module that is read for a point; None if the point is refused."""
    from actscope.taps.anatomy import locate

    try:
        module = locate(model, Site(layer, point)).module
    except SiteError:
        return None
    return next((path for path, one in block.named_modules() if one is module), "")


def _name(model: nn.Module, block: nn.Module, path: str) -> str:
    """Return the selection that names a module of a block in all layers."""
    full = next(name for name, one in model.named_modules() if one is block)
    return f"name its module instead: {full.rpartition('.')[0]}.*.{path}"


def _ranges(layers: list[int]) -> str:
    """Return layer numbers as text: 0-3, 5."""
    text: list[str] = []
    for layer in layers:
        if text and int(text[-1].rpartition("-")[2]) == layer - 1:
            text[-1] = f"{text[-1].partition('-')[0]}-{layer}"
        else:
            text.append(str(layer))
    return ", ".join(text)
