"""Measures which modules of a block add to the residual stream, on one short forward pass.

A module's name does not say what a block adds: a norm, a factor or a dropout may follow an attention module. The change of the
stream does. `measure` finds the modules whose outputs sum to it,

    resid_post = stream_scale * resid_pre + scale_1 * output_1 + scale_2 * output_2 ...

by least squares over all small sets of modules, and names each summand by the attention, mixer or MLP module that ran last
before it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

SummandKind = Literal["attn_out", "mixer_out", "mlp_out"]

#: Most summands of a block, and most modules among which they are searched. Of more, those nearest to the block are taken.
_MOST_SUMMANDS, _MOST_MODULES = 4, 32
#: Most rows of an output that are kept. They are spread evenly over the pass.
_ROWS = 16
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
    """Some rows of what one block and the modules below it gave in one pass; outputs in the order in which modules finished.

    Passes of other threads are not seen.
    """

    thread: int = 0
    before: Tensor | None = None
    after: Tensor | None = None
    n_elements: int = 0
    runs: int = 0
    training: bool = False
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)


class BlockWatch:
    """Hooks on blocks and all modules below them, which keep some rows of each output of one forward pass.

    The hooks copy at most `_ROWS` rows of an output on the model's device, and never wait for it.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        """Take the blocks of a model, first to last."""
        self._blocks = list(blocks)
        self._seen = [_Seen() for _ in blocks]
        self._hooks: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks, and forget an earlier pass."""
        self._seen = [_Seen(thread=threading.get_ident()) for _ in self._blocks]
        for block, one in zip(self._blocks, self._seen, strict=True):
            self._hooks.append(block.register_forward_pre_hook(_before(one), with_kwargs=True))
            self._hooks += [
                module.register_forward_hook(_keep(one, path)) for path, module in block.named_modules() if path
            ]
            self._hooks.append(block.register_forward_hook(_after(one)))

    def detach(self) -> None:
        """Remove the hooks. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def runs_of(self, layer: int) -> int:
        """Return how many times a block ran since `attach`."""
        return self._seen[layer].runs

    def input_of(self, layer: int) -> Tensor | None:
        """Return the kept rows of what a block was called with last; None if it did not run, or not with a tensor."""
        return self._seen[layer].before

    def output_of(self, layer: int) -> Tensor | None:
        """Return the kept rows of what a block returned last; None if it did not run, or returned no tensor."""
        return self._seen[layer].after

    def sums(self, named: Sequence[Sequence[Summand]]) -> list[BlockSum | None]:
        """Solve for what each block adds to the stream.

        Args:
            named: For each block the summands that its names suggest, tried first; empty if they suggest nothing.

        Returns:
            One entry per block, as of `measure`.
        """
        return [
            _solved(one, block, suggested)
            for one, block, suggested in zip(self._seen, self._blocks, named, strict=True)
        ]


def measure(
    blocks: Sequence[nn.Module], run: Callable[[], object], named: Sequence[Sequence[Summand]] | None = None
) -> list[BlockSum | None]:
    """Find what each block adds to the residual stream.

    Args:
        blocks: Blocks of a model, first to last.
        run: Runs the model once over a few tokens. It is called without gradients.
        named: For each block the summands that its names suggest; they are tried first.

    Returns:
        One entry per block: None if the block did not run exactly once, returns another shape than it takes, or does not add
        outputs of its modules (a norm on the stream itself, several parallel streams).
    """
    watch = BlockWatch(blocks)
    watch.attach()
    try:
        with torch.no_grad():
            run()
    finally:
        watch.detach()
    return watch.sums(named or [()] * len(blocks))


def explain(
    block: nn.Module,
    before: Tensor,
    after: Tensor,
    outputs: Sequence[tuple[str, Tensor]],
    named: Sequence[Summand] = (),
) -> BlockSum | None:
    """Find what a block added to the stream in a pass that was observed by other means than `measure`.

    Args:
        block: The block.
        before: The stream before the block [n, d].
        after: The stream behind it [n, d].
        outputs: (path, output) of modules below the block, in the order in which they finished; outputs of n * d elements.
        named: What the block adds by the names of its modules; tried first.
    """
    shaped = [(path, value.reshape(before.shape)) for path, value in outputs]
    return _solved(_Seen(before=before, after=after, runs=1, outputs=shaped), block, named)


def some_rows(value: object) -> Tensor | None:
    """Return copies [n <= 16, d] of some rows of a tensor, or of the first item of a tuple or list, evenly spread; else None."""
    found = _tensor(value)
    return None if found is None or found.ndim < 2 or not found.numel() else _rows(found, found.shape[-1])


def _rows(found: Tensor, d: int) -> Tensor:
    flat = found.detach().reshape(-1, d)
    n = len(flat)
    if n <= _ROWS:
        return flat.clone()
    chosen = torch.arange(_ROWS, device=flat.device) * (n - 1) // (_ROWS - 1)
    return flat.index_select(0, chosen)


def _tensor(value: object) -> Tensor | None:
    found = value[0] if isinstance(value, tuple | list) and value else value
    return found if isinstance(found, Tensor) else None


def _before(one: _Seen) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if threading.get_ident() != one.thread:
            return
        found = _tensor(args[0] if args else kwargs.get("hidden_states"))
        one.before = some_rows(found)
        one.n_elements = 0 if found is None else found.numel()
        one.runs, one.training = one.runs + 1, module.training

    return hook


def _after(one: _Seen) -> Callable[..., None]:
    def hook(module: nn.Module, args: object, output: object) -> None:
        if threading.get_ident() != one.thread:
            return
        found = _tensor(output)
        one.after = some_rows(found) if found is not None and found.numel() == one.n_elements else None

    return hook


def _keep(one: _Seen, path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: object, output: object) -> None:
        if threading.get_ident() != one.thread:
            return
        found = _tensor(output)
        if found is not None and one.before is not None and found.numel() == one.n_elements:
            one.outputs.append((path, _rows(found, one.before.shape[1])))

    return hook


def _solved(one: _Seen, block: nn.Module, named: Sequence[Summand]) -> BlockSum | None:
    if one.before is None or one.after is None or one.before.shape != one.after.shape or one.runs != 1:
        return None
    problem = _Problem.of(one)
    if problem is None:
        return None
    return problem.suggested(named) or problem.searched(block)


@dataclass(slots=True)
class _Problem:
    """The change of one block on some rows, flattened, float64 on the CPU, and the outputs that may make it up."""

    before: Tensor
    after: Tensor
    eps: float
    order: list[str]
    candidates: list[tuple[str, Tensor]]
    stands_for: dict[str, str]

    @classmethod
    def of(cls, one: _Seen) -> _Problem | None:
        """Return the problem of a block; None if too few of its values are finite, or all are 0."""
        assert one.before is not None and one.after is not None
        tensors = [one.before, one.after, *(value for _, value in one.outputs)]
        eps = max(torch.finfo(value.dtype).eps for value in tensors if value.is_floating_point())
        before, after, *outputs = (value.to("cpu", torch.float64) for value in tensors)
        finite = torch.isfinite(after).all(1) & torch.isfinite(before).all(1)  # a row of padding may be NaN
        paths = [path for path, _ in one.outputs]
        known = [
            (path, value[finite].reshape(-1))
            for path, value in zip(paths, outputs, strict=True)
            if torch.isfinite(value[finite]).all()
        ]
        before, after = before[finite].reshape(-1), after[finite].reshape(-1)
        if not len(after) or not after.any():
            return None
        once = [(path, value) for path, value in known if paths.count(path) == 1]
        candidates, stands_for = _distinct(once)
        return cls(before, after, eps, paths, candidates, stands_for)

    def suggested(self, named: Sequence[Summand]) -> BlockSum | None:
        """Return the sum of these summands if it is the block's change up to rounding, else None."""
        outputs = dict(self.candidates)
        paths = [self.stands_for.get(summand.path) for summand in named]
        values = [outputs[path] for path in paths if path is not None]
        if not named or len(values) != len(named):
            return None
        scales = torch.tensor([summand.scale for summand in named], dtype=torch.float64)
        if not self._holds(torch.stack(values), scales, 1.0):
            return None
        ordered = sorted(named, key=lambda summand: self.order.index(summand.path))
        return BlockSum(tuple(ordered), 1.0, self._error(torch.stack(values), scales, 1.0), {})

    def searched(self, block: nn.Module) -> BlockSum | None:
        """Return the smallest set of outputs whose weighted sum is the block's change up to rounding, or None."""
        if not self.candidates:
            return None
        weight = 1 / (self.before.abs() + self.after.abs() + 1e-3 * self.after.abs().mean())
        modules = torch.stack([value for _, value in self.candidates])
        exact = (
            self.eps < 1e-5
        )  # a half precision shows two digits of a factor, which is not what the model multiplies by
        for free in (0, 1):
            rows = torch.cat([modules, self.before[None]]) if free else modules
            target = self.after if free else self.after - self.before
            for n in range(1, _MOST_SUMMANDS + 1):
                found = _nearest(rows * weight, target * weight, n, free)
                if found is None:
                    continue
                chosen, fitted = found
                values = modules[chosen[:n]]
                for scales in (_snapped(fitted), fitted)[: 2 if exact else 1]:
                    stream = float(scales[n]) if free else 1.0
                    if self._holds(values, scales[:n], stream):
                        return self._sum_of(block, chosen[:n], scales[:n], stream)
        return None

    def _sum_of(self, block: nn.Module, chosen: Sequence[int], scales: Tensor, stream: float) -> BlockSum:
        paths = [self.candidates[i][0] for i in chosen]
        error = self._error(torch.stack([self.candidates[i][1] for i in chosen]), scales, stream)
        picked = sorted(zip(paths, scales.tolist(), strict=True), key=lambda pair: self.order.index(pair[0]))
        summands = tuple(Summand(path, _clean(scale), _kind_of(block, path, self.order)) for path, scale in picked)
        same = {path: kept for path, kept in self.stands_for.items() if kept in paths}
        return BlockSum(summands, _clean(stream), error, same)

    def _holds(self, values: Tensor, scales: Tensor, stream: float) -> bool:
        """Return whether the sum is the block's output up to the rounding of its own additions.

        An addition is wrong by at most eps / 2 of its result. Each element is held to what its additions can lose, and the mean
        to half of that, so that massive activations in a few elements do not hide what is missing in the others.
        """
        terms = scales[:, None] * values
        size = self.before.abs() * abs(stream) + self.after.abs() + terms.abs().sum(0)
        wrong = (stream * self.before + terms.sum(0) - self.after).abs()
        n = len(values)
        return bool(
            (wrong <= (1 + n / 2) * self.eps * size).all() and wrong.mean() <= (n + 1) / 4 * self.eps * size.mean()
        )

    def _error(self, values: Tensor, scales: Tensor, stream: float) -> float:
        wrong = stream * self.before + (scales[:, None] * values).sum(0) - self.after
        return float(wrong.abs().max() / self.after.abs().max())


def _snapped(scales: Tensor) -> Tensor:
    """Return the factors, with 1 in place of those that are nearly 1."""
    return torch.where((scales - 1).abs() < 0.02, torch.ones_like(scales), scales)


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

    Outputs of zeros are left out.
    """
    kept: list[tuple[str, Tensor]] = []
    stands_for: dict[str, str] = {}
    for path, value in sorted(outputs, key=lambda entry: entry[0].count(".")):
        if not value.any():
            continue
        first = next((other for other, known in kept if torch.equal(value, known)), None)
        if first is None and len(kept) < _MOST_MODULES:
            kept.append((path, value))
            stands_for[path] = path
        elif first is not None:
            stands_for[path] = first
    return kept, stands_for


def _clean(scale: float) -> float:
    """Return a factor without the error of solving for it: 1.0 for 0.99999999."""
    return float(f"{scale:.6g}")


def _kind_of(block: nn.Module, path: str, order: Sequence[str]) -> SummandKind:
    """Return the kind of the summand's own core module, or of the core module that finished last before it."""
    for name in (path, *reversed(order[: order.index(path)])):
        head = name.partition(".")[0]
        if not _NOT_CORE.search(head):
            return kind_of(head, type(getattr(block, head)).__name__)
    return "mlp_out"


def kind_of(name: str, class_name: str) -> SummandKind:
    """Return what a module of a block is, by its name; by its class where the name is that of any mixer (Nemotron-H)."""
    if name in ("mixer", "temporal_block", "block"):
        name = class_name
    if _MIXER.search(name):
        return "mixer_out"
    return "attn_out" if _ATTENTION.search(name) else "mlp_out"
