"""Measures which modules of a block add to the residual stream, on one short forward pass.

A module's name does not say what a block adds: a norm, a factor or a dropout may follow an attention module. The change of the
stream does. `measure` finds the modules whose outputs sum to it,

    resid_post = stream_scale * resid_pre + scale_1 * output_1 + scale_2 * output_2 ...

by least squares over all small sets of modules, and names each summand by the attention, mixer or MLP module that ran last
before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

SummandKind = Literal["attn_out", "mixer_out", "mlp_out"]

#: Most summands of a block, and most modules among which they are searched. Of more, those nearest to the block are taken.
_MOST_SUMMANDS, _MOST_MODULES = 4, 32
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MIXER = re.compile(r"mamba|ssm|mixer|conv|rwkv|recurrent|retention|delta|linear_?att", re.IGNORECASE)
_NOT_CORE = re.compile(r"norm|^ln|dropout", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Summand:
    """One summand of a block's change: `scale` times the output of the module at `path` below the block."""

    path: str
    scale: float
    kind: SummandKind


@dataclass(frozen=True, slots=True)
class BlockSum:
    """What a block adds to the stream.

    Attributes:
        summands: In the order in which their modules finished.
        stream_scale: Factor of the block's input, 1 in all but a few architectures.
        error: Largest deviation of the sum from the block's output, relative to the output's largest value.
        same_output: For each module below the block that gave the same values as one of `summands`, the path of that summand.
    """

    summands: tuple[Summand, ...]
    stream_scale: float
    error: float
    same_output: Mapping[str, str]


@dataclass(slots=True)
class _Seen:
    """Input and output of a block, and the outputs of the modules below it in the order in which they finished."""

    before: Tensor | None = None
    after: Tensor | None = None
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)


def measure(blocks: Sequence[nn.Module], run: Callable[[], object]) -> list[BlockSum | None]:
    """Find what each block adds to the residual stream.

    Args:
        blocks: Blocks of a model, first to last.
        run: Runs the model once over a few tokens. It is called without gradients.

    Returns:
        One entry per block: None if the block did not run, returns another shape than it takes, or does not add outputs of
        its modules (a norm on the stream itself, several parallel streams).
    """
    seen = [_Seen() for _ in blocks]
    with _watching(blocks, seen), torch.no_grad():
        run()
    return [_solved(one) for one in seen]


def explain(before: Tensor, after: Tensor, outputs: Sequence[tuple[str, Tensor]]) -> BlockSum | None:
    """Find what a block added to the stream in a pass that was observed by other means than `measure`.

    Args:
        before: The stream before the block, on the CPU.
        after: The stream behind it, of the same shape.
        outputs: (path, output) of modules below the block, in the order in which they finished; outputs are flat.
    """
    return _solved(_Seen(before, after, list(outputs)))


@contextmanager
def _watching(blocks: Sequence[nn.Module], seen: Sequence[_Seen]) -> Iterator[None]:
    hooks: list[RemovableHandle] = []
    for block, one in zip(blocks, seen, strict=True):
        hooks.append(block.register_forward_pre_hook(_before(one), with_kwargs=True))
        hooks += [module.register_forward_hook(_keep(one, path)) for path, module in block.named_modules() if path]
        hooks.append(block.register_forward_hook(_after(one)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before(one: _Seen) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        one.before = _copy(args[0] if args else kwargs.get("hidden_states"))

    return hook


def _after(one: _Seen) -> Callable[..., None]:
    def hook(module: nn.Module, args: object, output: object) -> None:
        one.after = _copy(output)

    return hook


def _keep(one: _Seen, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: object, output: object) -> None:
        value = _copy(output)
        if value is not None and one.before is not None and value.numel() == one.before.numel():
            one.outputs.append((path, value.reshape(-1)))

    return hook


def _copy(value: object) -> Tensor | None:
    """Return a copy, on the CPU, of a tensor or of the first item of a tuple or list; None for anything else."""
    found = value[0] if isinstance(value, tuple | list) and value else value
    return found.detach().to("cpu", copy=True) if isinstance(found, Tensor) else None


def _solved(one: _Seen) -> BlockSum | None:
    if one.before is None or one.after is None or one.before.shape != one.after.shape:
        return None
    size = float(one.after.abs().max())
    candidates, same = _distinct(one.outputs)
    if not candidates or not size or not torch.isfinite(one.after).all():
        return None
    tolerance = 8 * torch.finfo(one.after.dtype).eps
    order = [path for path, _ in one.outputs]
    before, after = one.before.double().reshape(-1), one.after.double().reshape(-1)
    modules = torch.stack([value.double() for _, value in candidates])
    for rows, target, free in ((modules, after - before, 0), (torch.cat([modules, before[None]]), after, 1)):
        for n in range(1, _MOST_SUMMANDS + 1):
            found = _nearest(rows, target, n, free)
            if found is None:
                continue
            chosen, scales = found
            error = float((scales @ rows[chosen] - target).abs().max()) / size
            if error <= tolerance:
                picked = sorted(
                    zip(chosen[:n], scales[:n].tolist(), strict=True), key=lambda p: order.index(candidates[p[0]][0])
                )
                summands = tuple(_summand(candidates[i][0], scale, order) for i, scale in picked)
                own = {summand.path for summand in summands}
                return BlockSum(
                    summands,
                    _clean(float(scales[n])) if free else 1.0,
                    error,
                    {path: kept for path, kept in same.items() if kept in own},
                )
    return None


def _nearest(rows: Tensor, target: Tensor, n: int, free: int) -> tuple[list[int], Tensor] | None:
    """Return the `n` rows whose weighted sum is nearest to `target`, and their factors; with `free`, the last row besides.

    None if there are too few rows, or no set in which each has an influence.
    """
    n_modules = len(rows) - free
    sets = torch.tensor([[*chosen, *([n_modules] * free)] for chosen in combinations(range(n_modules), n)])
    if not len(sets):
        return None
    gram, onto = rows @ rows.T, rows @ target
    sub = gram[sets[:, :, None], sets[:, None, :]]
    ridge = torch.diagonal(sub, dim1=1, dim2=2).mean(1)[:, None, None] * 1e-13
    solved = torch.linalg.solve_ex(sub + ridge * torch.eye(sub.shape[1], dtype=sub.dtype), onto[sets].unsqueeze(2))
    scales = solved.result.squeeze(2)  # not finite where a set has no solution
    left = target @ target - (scales * onto[sets]).sum(1)
    left[(scales.abs() < 1e-3).any(1) | ~torch.isfinite(left)] = torch.inf
    at = int(left.argmin())
    return (sets[at].tolist(), scales[at]) if torch.isfinite(left[at]) else None


def _distinct(outputs: Sequence[tuple[str, Tensor]]) -> tuple[list[tuple[str, Tensor]], dict[str, str]]:
    """Return one module of those with equal outputs, the outermost; and for each path the path that stands for it.

    Modules that ran more than once, and outputs of zeros, are left out.
    """
    paths = [path for path, _ in outputs]
    once = [(path, value) for path, value in outputs if paths.count(path) == 1 and bool(value.any())]
    kept: list[tuple[str, Tensor]] = []
    stands_for: dict[str, str] = {}
    for path, value in sorted(once, key=lambda entry: entry[0].count(".")):
        first = next((other for other, known in kept if torch.equal(value, known)), None)
        stands_for[path] = first or path
        if first is None and len(kept) < _MOST_MODULES:
            kept.append((path, value))
    return kept, stands_for


def _summand(path: str, scale: float, order: Sequence[str]) -> Summand:
    return Summand(path, _clean(scale), _kind_of(path, order))


def _clean(scale: float) -> float:
    """Return a factor without the error of solving for it: 1.0 for 0.9999999."""
    return float(f"{scale:.4g}")


def _kind_of(path: str, order: Sequence[str]) -> SummandKind:
    """Return the kind of the summand's own core module, or of the core module that finished last before it."""
    for name in (path, *reversed(order[: order.index(path)])):
        head = name.partition(".")[0]
        if not _NOT_CORE.search(head):
            return "mixer_out" if _MIXER.search(head) else "attn_out" if _ATTENTION.search(head) else "mlp_out"
    return "mlp_out"
