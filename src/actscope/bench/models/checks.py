"""Holds delivered rows against their reference, and the parts of a block against its sum."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from actscope.bench.models.cases import CaseRun
from actscope.bench.models.rows import Row, RowStore
from actscope.sites import POINTS

Status = Literal["right", "refused", "wrong", "unchecked"]
#: Largest deviation that counts as equal, relative to the row's largest number: copies of one tensor, and sums of parts.
COPY, SUM = 1e-6, 2e-4
#: Points whose rows are what a part of a block adds to the stream.
PARTS = tuple(point for point in POINTS if not point.startswith("resid"))

_ATTENTION = re.compile(
    r"attn|attention|mamba|mixer|ssm|conv|rwkv|recurrent|temporal|xlstm|mlstm|delta|time_mix", re.IGNORECASE
)
_MLP = re.compile(
    r"mlp|ffn|feed_forward|feedforward|moe|expert|\bfc\d|dense_h_to_4h|dense_4h_to_h|channel_mix|^ff\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class SiteFinding:
    """What is known of one site in one case."""

    site: str
    status: Status
    what: str = ""
    off: float = 0.0

    @property
    def point(self) -> str:
        """Return the site's point, such as resid_post."""
        return self.site.rpartition(".")[2]


def off_by(found: Tensor, right: Tensor) -> float:
    """Return the largest deviation, relative to the reference's largest number; infinite for other shapes or NaN."""
    if found.shape != right.shape:
        return float("inf")
    size = float(right.abs().max()) or 1.0
    deviation = float((found - right).abs().max()) / size
    return deviation if deviation == deviation else float("inf")


def rows_at(rows: RowStore, site: str, ran: CaseRun) -> list[Mapping[int, Row]]:
    """Return the rows of a site by lane and position."""
    return [rows.of.get(name, {}).get(site, {}) for name in _names(rows, site, ran)]


def _names(rows: RowStore, site: str, ran: CaseRun) -> list[str]:
    """Return the request of each lane. If they may be renamed, it is the one with the lane's tokens."""
    if not ran.renamed:
        return list(ran.lanes)
    names = []
    for lane, tokens in zip(ran.lanes, ran.tokens, strict=True):
        known = [name for name in rows.of if name.partition("#")[0] == lane and rows.of[name].get(site)]
        best = [name for name in known if [row.token for _, row in sorted(rows.of[name][site].items())] == list(tokens)]
        names.append((best or known or [lane])[0])
    return names


def stacked(lanes: Sequence[Mapping[int, Row]]) -> list[Tensor]:
    """Return [positions, d] by lane."""
    return [torch.stack([row.values for _, row in sorted(lane.items())]) for lane in lanes]


def check_site(
    rows: RowStore, site: str, ran: CaseRun, reference: Sequence[Tensor] | None, said: str, tolerance: float = COPY
) -> SiteFinding:
    """Check labels and values of one site. Rows that are missing are refused if the product said why, and wrong otherwise."""
    lanes = rows_at(rows, site, ran)
    others = [name for name, known in rows.of.items() if name not in _names(rows, site, ran) and known.get(site)]
    if others and not ran.renamed:
        return SiteFinding(site, "wrong", f"rows are labelled as of request {others[0]}, which nobody began")
    missing = False
    for name, lane, tokens in zip(ran.lanes, lanes, ran.tokens, strict=True):
        positions, wanted = sorted(lane), range(len(tokens))
        if not set(positions) <= set(wanted):
            return SiteFinding(site, "wrong", f"lane {name}: positions {positions}, expected 0 to {len(tokens) - 1}")
        fed, right = [lane[position].token for position in positions], [tokens[position] for position in positions]
        if fed != right:
            return SiteFinding(site, "wrong", f"lane {name}: token ids {fed}, expected {right}")
        missing |= len(positions) < len(wanted)
    if missing:
        silent = "rows are missing" if any(lanes) else "no rows were delivered"
        return SiteFinding(site, "refused" if said else "wrong", said or f"{silent}, and nothing says so")
    if reference is None:
        return SiteFinding(site, "unchecked", "no reference was found")
    off = max(off_by(found, right) for found, right in zip(stacked(lanes), reference, strict=True))
    return SiteFinding(site, "right" if off <= tolerance else "wrong", "" if off <= tolerance else "values differ", off)


def check_parts(
    rows: RowStore,
    ran: CaseRun,
    n_layers: int,
    delivered: set[str],
    states: Sequence[Sequence[Tensor]],
    tolerance: float = SUM,
) -> list[SiteFinding]:
    """Check that the parts of each block are what is added to the stream.

    They are right if `resid_pre` and all delivered parts sum to `resid_post`. Where they do not (a part was refused, or the block
    adds something else besides), a part is right if it is the difference of two states of the stream, and wrong if attention (or
    mixer) and MLP are both there.

    Args:
        rows: Rows of the plain pass.
        ran: What it fed.
        n_layers: Number of blocks.
        delivered: Sites with rows.
        states: For each block, all tensors [lanes, positions, d] that its modules took; states of the stream are among them.
        tolerance: Largest deviation of a sum that counts as equal, relative to the row's largest number.
    """
    findings = []
    for layer in range(n_layers):
        parts = [site for point in PARTS if (site := f"layers.{layer}.{point}") in delivered]
        ends = [f"layers.{layer}.{point}" for point in ("resid_pre", "resid_post")]
        if not parts or not delivered.issuperset(ends):
            continue
        before, after = (torch.cat(stacked(rows_at(rows, site, ran))) for site in ends)
        values = [torch.cat(stacked(rows_at(rows, site, ran))) for site in parts]
        off = off_by(torch.stack([before, *values]).sum(0), after)
        known = [
            before,
            after,
            *(state.reshape(before.shape) for state in states[layer] if state.numel() == before.numel()),
        ]
        for site, value in zip(parts, values, strict=True):
            if off <= tolerance or _is_difference(value, known):
                findings.append(SiteFinding(site, "right", "", off if off <= tolerance else 0.0))
            elif len(parts) > 1:
                findings.append(SiteFinding(site, "wrong", "resid_pre and the parts do not sum to resid_post", off))
            else:
                findings.append(SiteFinding(site, "unchecked", "the block's other part was refused"))
    return findings


def _is_difference(value: Tensor, states: Sequence[Tensor]) -> bool:
    """Return whether the value is the difference of two of these states, neither of which is zero."""
    real = [state for state in states if bool(state.any())]
    return any(off_by(late - early, value) <= SUM for early in real for late in real if early is not late)


def parameters_of(block: nn.Module, part: str) -> list[nn.Parameter]:
    """Return the parameters of a block's attention or mixer, or of its MLP, by their names; norms are left out."""
    pattern, other = (_MLP, _ATTENTION) if part == "mlp_out" else (_ATTENTION, _MLP)
    found = []
    for name, parameter in block.named_parameters():
        if "norm" not in name.lower() and pattern.search(name) and not other.search(name.partition(".")[0]):
            found.append(parameter)
    return found


@contextmanager
def disturbed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Change these parameters in the body, each entry by another factor, and restore them bit by bit.

    One factor for all would be taken out again by a norm behind.
    """
    generator = torch.Generator().manual_seed(2)
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
