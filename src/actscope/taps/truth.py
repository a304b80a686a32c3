"""Holds the points of a model against one of its forward passes: does each give what its name says?

    flow    what block i returns is what block i + 1 takes, and what the last returns is what the final norm takes
    sum     resid_pre and what the block's modules add make up resid_post (see `actscope.taps.measured`)

A point that fails is refused with the reason. The check needs no knowledge of the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.sites import Site
from actscope.taps.measured import BlockSum, BlockWatch, Summand, some_rows

#: A stream whose values differ by more than this many roundings is another one.
_ROUNDINGS = 4


@dataclass(frozen=True, slots=True)
class Truth:
    """What one forward pass showed of a model.

    Attributes:
        sums: What each block adds to the stream; None where that is no sum of outputs of its modules.
        refused: Points of the residual stream that are not what their names say, and why.
        training: Whether the model was in training mode, in which dropout follows its modules.
    """

    sums: Sequence[BlockSum | None]
    refused: dict[Site, str]
    training: bool


@dataclass(slots=True)
class _FinalNorm:
    """The final norm's input in a pass."""

    rows: Tensor | None = None
    runs: int = 0
    hook: RemovableHandle | None = field(default=None, repr=False)


class TruthCheck:
    """Watches one forward pass of a model. Attach it before the pass, detach it afterwards, and ask for `truth`."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        final_norm: nn.Module | None,
        named: Sequence[Sequence[Summand]],
        *,
        norm_repeats: bool = False,
    ) -> None:
        """Take a model's blocks, its final norm if it has one, and what its blocks add by their names.

        With `norm_repeats` the final norm runs elsewhere in a pass too, and its last run is compared.
        """
        self._norm_repeats = norm_repeats
        self._blocks, self._final_norm, self._named = list(blocks), final_norm, named
        self._watch = BlockWatch(blocks)
        self._end = _FinalNorm()

    def attach(self) -> None:
        """Register the hooks. Their values are copies of a few rows, on the model's device."""
        self._watch.attach()
        self._end = end = _FinalNorm()
        if self._final_norm is not None:

            def keep(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
                end.runs += 1
                end.rows = some_rows(args[0] if args else next(iter(kwargs.values()), None))

            end.hook = self._final_norm.register_forward_pre_hook(keep, with_kwargs=True)

    def detach(self) -> None:
        """Remove the hooks. Idempotent."""
        self._watch.detach()
        if self._end.hook is not None:
            self._end.hook.remove()
            self._end.hook = None

    def ran(self, layer: int) -> bool:
        """Return whether a block ran since `attach`; -1 is the last one."""
        return self._watch.runs_of(layer) > 0

    def truth(self) -> Truth:
        """Return what the pass showed. Waits for the model's device."""
        sums = self._watch.sums(self._named)
        refused = self._broken_flow(sums) | self._not_once()
        return Truth(sums, refused, any(block.training for block in self._blocks))

    def _not_once(self) -> dict[Site, str]:
        """Return the points that the pass did not reach exactly once."""
        refused: dict[Site, str] = {}
        for i in range(len(self._blocks)):
            runs = self._watch.runs_of(i)
            if runs != 1:
                why = f"block {i} ran {runs} times in one pass"
                refused |= {Site(i, "resid_pre"): why, Site(i, "resid_post"): why}
        if self._final_norm is not None and (self._end.runs == 0 or (self._end.runs > 1 and not self._norm_repeats)):
            refused[Site(None, "final_norm")] = f"the final norm ran {self._end.runs} times in one pass"
        return refused

    def _broken_flow(self, sums: Sequence[BlockSum | None]) -> dict[Site, str]:
        """Return the points at which the stream does not go on as it should, unless the blocks' sums prove them right."""
        refused: dict[Site, str] = {}
        ran = [i for i in range(len(sums)) if self.ran(i)]
        if not ran:
            return refused
        last = ran[-1]
        for i, after in pairwise(ran):
            why = _difference(self._watch.output_of(i), self._watch.input_of(after))
            if why and sums[i] is None:
                refused[Site(i, "resid_post")] = f"block {i} returns other values than block {after} takes ({why})"
            if why and sums[after] is None:
                refused[Site(after, "resid_pre")] = f"block {after} takes other values than block {i} returns ({why})"
        why = _difference(self._watch.output_of(last), self._end.rows) if self._end.rows is not None else ""
        if why and sums[last] is None:
            for i, known in enumerate(sums):
                if known is None:
                    reason = f"the model's final norm takes other values than its last block returns ({why})"
                    refused = {Site(i, "resid_pre"): reason, Site(i, "resid_post"): reason} | refused
        return refused


def _difference(one: Tensor | None, other: Tensor | None) -> str:
    """Return how two tensors differ by more than rounding, "" if they do not."""
    if one is None or other is None:
        return "no tensor of its own shape"
    if one.shape != other.shape:
        return f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
    eps = max(torch.finfo(value.dtype).eps for value in (one, other))
    a, b = (value.to("cpu", torch.float64) for value in (one, other))
    finite = torch.isfinite(a) & torch.isfinite(b)
    wrong, size = (a - b).abs()[finite], (a.abs() + b.abs())[finite]
    if not len(wrong) or bool((wrong <= _ROUNDINGS * eps * size).all()):
        return ""
    return f"by {float(wrong.max()):.3g}, of {float(size.max()) / 2:.3g}"
