"""Decides, for each site, which tensors of the model are its row, or why it is refused."""

from __future__ import annotations

import inspect
import logging
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from actscope.engines.vllm.truth.reading import Reading, Tensors, candidates, distance, streams, tolerance
from actscope.engines.vllm.truth.trial import BlockTrial, Trial, TrialRunner
from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import Location, adopt, locate, named_summands
from actscope.taps.measured import BlockSum, explain
from actscope.taps.text_model import blocks, text_config

log = logging.getLogger("actscope.vllm")

#: Numbers of each row that ranks compare, and how far they may differ, in multiples of `tolerance`.
_SAMPLES, _SLACK = 32, 4
#: In a half precision a factor this near to 1 is 1.
_NEAR_ONE = 0.02
#: A block whose code treats float16 in a way of its own scales its stream down against overflows (DeepSeek V2 and V3).
_FLOAT16 = re.compile(r"torch\.float16\b|torch\.half\b")
_INSTEAD = "use another site, --model-impl transformers, or the engine for transformers (actscope serve)"


@dataclass(frozen=True, slots=True)
class Tap:
    """Where a site is read: the tensors `reading` among those that `location.module` takes or returns."""

    location: Location
    reading: Reading


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The result of a check: how each site is read, and for all others the reason, by name."""

    taps: dict[Site, Tap]
    refused: dict[str, str]


class _Refused(Exception):
    """A site cannot be read; the message is the reason."""


def examine(runner: TrialRunner, model: nn.Module, sites: Iterable[Site]) -> Verdicts:
    """Run the model on trial and decide how each site is read. Every refusal is logged.

    All tensor-parallel ranks must call it with the same sites, before the model's first pass or between two passes.

    Args:
        runner: vLLM's model runner, with its model loaded.
        model: The model.
        sites: Sites whose modules are in this process.
    """
    wanted = list(dict.fromkeys(sites))
    if not wanted:
        return Verdicts({}, {})
    began = time.monotonic()
    try:
        check = _Check(runner, model, wanted)
        check.run()
        found = {site: check.verdict(site) for site in wanted}
        samples = torch.stack([check.sample(site) for site in wanted])
    except SiteError:
        raise
    except Exception as error:  # the boundary to vLLM, whose code runs in it
        log.exception("the trial pass failed")
        why = f"the trial pass, which shows what a site's row is, failed: {type(error).__name__}: {error}"
        found, samples = dict.fromkeys(wanted, why), torch.zeros(len(wanted), _SAMPLES, dtype=torch.float64)
    found = _agreed(found, samples, _SLACK * tolerance(runner.model_config.dtype))
    refused = {site.name: why for site, why in found.items() if isinstance(why, str)}
    _report(refused, model)
    seconds = time.monotonic() - began
    log.info(
        "truth check: %d sites are read, %d are refused (%.1f s)", len(wanted) - len(refused), len(refused), seconds
    )
    return Verdicts({site: tap for site, tap in found.items() if isinstance(tap, Tap)}, refused)


class _Check:
    """The trial passes of one check, and what they showed.

    Attributes:
        entry, exit: How the stream is read where each block begins, and where it ends; blocks that nothing settles are absent.
        sums: What each block of which that was asked adds to the stream; None if it is no sum of its modules' outputs.
    """

    def __init__(self, runner: TrialRunner, model: nn.Module, sites: Sequence[Site]) -> None:
        self._model, self._sites = model, sites
        self._dtype: torch.dtype = runner.model_config.dtype
        self._kind = type(model).__name__
        self._layers = {i: block for i, block in enumerate(blocks(model)) if not is_placeholder(block)}
        self._trial = Trial(runner, self._layers, int(text_config(model).hidden_size))
        self._first: dict[int, BlockTrial] = {}
        self.entry: dict[int, Reading] = {}
        self.exit: dict[int, Reading] = {}
        self.sums: dict[int, BlockSum | None] = {}

    def run(self) -> None:
        """Run one trial pass, and two more if norms do not settle everything or points inside of blocks are asked for."""
        self._trial.run()
        self._first = first = self._trial.blocks
        self.entry = {i: found for i, one in first.items() if (found := _settled(one.read, self._dtype))}
        self.exit = {i: found for i, one in first.items() if (found := _settled(one.behind, self._dtype))}
        inside = {site.layer for site in self._sites if site.point in ("attn_out", "mlp_out", "mixer_out")}
        again = {i for i in first if i in inside or i not in self.entry or i not in self.exit}
        if again:
            self._learn(again, _usual_change(first, self.entry, self.exit))
        watched = [place.module for site in self._sites if not _is_stream(site) and (place := self._place(site))]
        if watched:
            self._trial.run(watched)

    def _place(self, site: Site) -> Location | None:
        try:
            return locate(self._model, site)
        except SiteError:
            return None

    # --- what blocks add ---

    def _learn(self, layers: Collection[int], scale: float) -> None:
        """Find what these blocks add to the stream, and how it is read where no norm has settled that."""
        self._trial.run(sums={*layers, *(i + 1 for i in layers)} & set(self._layers), scale=scale)
        for i in sorted(layers):
            one = self._trial.blocks[i]
            if i not in self.entry and len(one.taken) == 1:
                self.entry.update((i, reading) for reading in one.uses)
            if i not in self.exit and len(one.given) == 1:
                self.exit.update((i, reading) for reading in one.used)
            self.sums[i] = self._solved(i, one)
        adopt(self._model, [self.sums.get(i) for i in range(max(self._layers) + 1)])

    def _solved(self, i: int, one: BlockTrial) -> BlockSum | None:
        """Return what a block adds, if that is a sum of outputs of its modules.

        Settles its readings where a norm could not, because the block has only one tensor there or none runs behind it in this
        process. Of several, those are right between which the block adds the most: the stream in mid-block is a sum too.
        """
        if (i not in self.entry and len(one.taken) > 1) or (i not in self.exit and len(one.given) > 1 and one.norms):
            return None
        block, found = self._layers[i], []
        named = named_summands(block)
        for entry, before in _distinct(one.taken, self.entry.get(i)):
            for end, after in _distinct(one.given, self.exit.get(i)):
                total = explain(block, before, after, one.outputs, named)
                if total is not None:
                    found.append((entry, end, _rounded(total, self._dtype)))
        if i not in self.entry or i not in self.exit:
            found = [one for one in found if one[2].stream_scale == 1]
        most = max((len(total.summands) for _, _, total in found), default=0)
        chosen = [one for one in found if len(one[2].summands) == most]
        if len(chosen) != 1:
            return None
        self.entry.setdefault(i, chosen[0][0])
        self.exit.setdefault(i, chosen[0][1])
        return chosen[0][2]

    # --- verdicts ---

    def verdict(self, site: Site) -> Tap | str:
        """Return how a site is read, or the reason why it is not."""
        try:
            return self._stream(site) if _is_stream(site) else self._module(site)
        except _Refused as refusal:
            return str(refusal)
        except SiteError as refusal:  # it speaks of modules' paths, which cannot be named here
            return f"{str(refusal).removeprefix(f'{site}: ').partition('; ')[0]}; use resid_pre and resid_post"

    def _stream(self, site: Site) -> Tap:
        location = locate(self._model, site)
        i = site.layer or 0
        one, block = self._first[i], type(self._layers[i]).__name__
        reading = (self.entry if location.side == "input" else self.exit).get(i)
        if one.runs != 1:
            raise _Refused(f"{block} runs {one.runs} times in a pass of {self._kind}, expected once; {_INSTEAD}")
        if reading is None:
            raise _Refused(self._undecided(location.side, one, block))
        if self._dtype == torch.float16 and _FLOAT16.search(_source(self._layers[i])):
            raise _Refused(
                f"{block} scales its residual stream in float16, so its rows are not those of the model; run it in bfloat16"
            )
        return Tap(location, reading)

    def _undecided(self, side: str, one: BlockTrial, block: str) -> str:
        tensors, found = (one.taken, one.read) if side == "input" else (one.given, one.behind)
        does = "takes" if side == "input" else "returns"
        if one.wide:
            return f"{block} {does} several vectors for each token, none of which is the residual stream; {_INSTEAD}"
        if not tensors:
            return f"{block} {does} no tensor with one vector for each token; {_INSTEAD}"
        near = f", the nearest is {min(found.values()):.2g} of its length off" if found else ""
        return (
            f"none of the {len(tensors)} tensors that {block} {does}, and no sum of two, is the stream that the next norm of "
            f"{self._kind} reads{near}, or that its modules add to; {_INSTEAD}"
        )

    def _module(self, site: Site) -> Tap:
        if site.layer is not None and self.sums.get(site.layer) is None:
            raise _Refused(
                f"what {type(self._layers[site.layer]).__name__} adds to the stream is no sum of outputs of its modules, or "
                "they are partial sums of several ranks; use resid_pre and resid_post"
            )
        location = locate(self._model, site)
        kind = type(location.module).__name__
        one = self._trial.modules[location.module]
        if one.runs != 1:
            raise _Refused(f"{kind} runs {one.runs} times in a pass of {self._kind}, expected once")
        tensors = one.taken if location.side == "input" else one.given
        found = streams(tensors, self._trial.n, self._trial.d)
        if not found:
            shapes = ", ".join(str(list(t.shape)) for t in tensors.values()) or "none"
            raise _Refused(
                f"{kind}: expected a vector of width {self._trial.d} for each of {self._trial.n} tokens, found {shapes}"
            )
        return Tap(location, Reading((next(iter(found)),)))

    def sample(self, site: Site) -> Tensor:
        """Return some numbers of a site's row, by which ranks see whether they have the same: float64 [32]."""
        tap = self.verdict(site)
        if isinstance(tap, str):
            return torch.zeros(_SAMPLES, dtype=torch.float64)
        rows = self._rows(site, tap).reshape(-1)[:_SAMPLES].double().cpu()
        return torch.nn.functional.pad(rows, (0, _SAMPLES - len(rows)))

    def _rows(self, site: Site, tap: Tap) -> Tensor:
        i = next((i for i, block in self._layers.items() if block is tap.location.module), None)
        if i is None:
            one = self._trial.modules[tap.location.module]
            return _row(one.taken if tap.location.side == "input" else one.given, tap.reading)
        if tap.location.side == "output":
            return _row(self._first[i].given, tap.reading)
        before = self._first.get(i - 1)
        return (
            _row(before.given, self.exit[i - 1])
            if before and i - 1 in self.exit
            else _row(self._first[i].taken, tap.reading)
        )


def is_placeholder(module: nn.Module) -> bool:
    """Return whether a module is vLLM's placeholder for a module of another pipeline stage."""
    return type(module).__name__ == "PPMissingLayer"


def _source(block: nn.Module) -> str:
    try:
        return inspect.getsource(type(block).forward)
    except (OSError, TypeError):  # code that has no file
        return ""


def _is_stream(site: Site) -> bool:
    return site.point == "embed" or (site.layer is not None and site.point.startswith("resid"))


def _settled(found: Mapping[Reading, float], dtype: torch.dtype) -> Reading | None:
    """Return the one reading from which a norm makes what it made in the pass; None if there is none, or several."""
    near = [reading for reading, off in found.items() if off <= tolerance(dtype)]
    far = [off for reading, off in found.items() if reading not in near]
    return near[0] if len(near) == 1 and min(far, default=1.0) > 10 * tolerance(dtype) else None


def _distinct(tensors: Tensors, settled: Reading | None) -> list[tuple[Reading, Tensor]]:
    """Return the readings that are possible, and their rows: the settled one, or all."""
    return [(reading, rows) for reading, rows in candidates(tensors) if settled is None or reading == settled]


def _row(tensors: Tensors, reading: Reading) -> Tensor:
    return next(rows for other, rows in candidates(tensors) if other == reading)


def _rounded(found: BlockSum, dtype: torch.dtype) -> BlockSum:
    """Return a sum with factors near 1 as 1, where the model's dtype cannot tell them apart."""
    if torch.finfo(dtype).eps < 1e-4:
        return found
    summands = tuple(replace(s, scale=1.0) if abs(s.scale - 1) < _NEAR_ONE else s for s in found.summands)
    scale = 1.0 if abs(found.stream_scale - 1) < _NEAR_ONE else found.stream_scale
    return replace(found, summands=summands, stream_scale=scale)


def _usual_change(seen: Mapping[int, BlockTrial], entry: Mapping[int, Reading], exit: Mapping[int, Reading]) -> float:
    """Return the median standard deviation of what blocks add: a stream of that size shows it in a half precision too."""
    changes = sorted(
        float((_row(one.given, exit[i]).float() - _row(one.taken, entry[i]).float()).std())
        for i, one in seen.items()
        if i in entry and i in exit
    )
    return min(max(changes[len(changes) // 2], 1e-2), 1.0) if changes else 1.0


def _agreed(found: dict[Site, Tap | str], samples: Tensor, tolerated: float) -> dict[Site, Tap | str]:
    """Refuse, on all tensor-parallel ranks alike, what one of them refuses, and rows that differ between ranks.

    All ranks of a stage compile one graph, so they must have the same taps.
    """
    group = _ranks()
    if group.world_size == 1:
        return found
    own = torch.cat(
        [torch.tensor([[float(isinstance(tap, Tap))] for tap in found.values()], dtype=torch.float64), samples], 1
    )
    ranks = [torch.zeros_like(own) for _ in range(group.world_size)]
    torch.distributed.all_gather(ranks, own, group=group.cpu_group)
    agreed = dict(found)
    for k, (site, tap) in enumerate(found.items()):
        if any(not rank[k, 0] for rank in ranks):
            agreed[site] = tap if isinstance(tap, str) else "another tensor-parallel rank refuses it, see its log"
            continue
        off = max(distance(rank[k, 1:], ranks[0][k, 1:]) for rank in ranks)
        if off > tolerated:
            agreed[site] = (
                f"its rows on {group.world_size} tensor-parallel ranks differ by {off:.2g} of their length: each rank has a "
                "partial sum, and they are added up later; use resid_post, or one rank"
            )
    return agreed


class _Ranks(Protocol):
    world_size: int
    cpu_group: torch.distributed.ProcessGroup


def _ranks() -> _Ranks:
    """Return vLLM's group of tensor-parallel ranks."""
    from vllm.distributed.parallel_state import get_tp_group

    group: _Ranks = get_tp_group()
    return group


def _report(refused: Mapping[str, str], model: nn.Module) -> None:
    """Log refusals, one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in refused.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        shown = ", ".join(names) if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)} sites)"
        log.error("%s of %s: refused, no scores and no rows are delivered: %s", shown, type(model).__name__, why)
