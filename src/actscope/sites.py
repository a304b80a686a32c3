"""Sites: named points of a model, and the small grammar that selects them.

    layers.19.resid_post      the residual stream after block 19 (blocks are numbered from 0)
    embed, final_norm         before the first block, after the last norm

Selection grammar, comma separated:

    all | 0,7,15 | -1 | first,middle,last | 10-20 | 10-20:2 | 19.mlp_out | layers.19.resid_post | embed
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from actscope.errors import SiteError

POINTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
OUTER = ("embed", "final_norm")

_ITEM = re.compile(r"^(?:layers\.)?(?P<layers>all|first|middle|last|-?\d+|\d+-\d+(?::\d+)?)(?:\.(?P<point>\w+))?$")


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A point of the model. `layer` is None for the two outer points."""

    layer: int | None
    point: str

    @property
    def name(self) -> str:
        return self.point if self.layer is None else f"layers.{self.layer}.{self.point}"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, name: str) -> Site:
        """Read a full site name; raises SiteError for anything else."""
        if name in OUTER:
            return cls(None, name)
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)", name)
        if match is None or match[2] not in POINTS:
            raise SiteError(
                f"site {name!r}: expected layers.<number>.<point> with point one of {', '.join(POINTS)}, "
                f"or one of {', '.join(OUTER)}"
            )
        return cls(int(match[1]), match[2])


def select(selection: str, n_layers: int, point: str = "resid_post") -> tuple[Site, ...]:
    """Sites that `selection` names in a model of `n_layers` blocks, in model order, without repeats.

    `point` is used where the selection names only layers. Raises SiteError, naming the item, when an item
    cannot be read or lies outside the model.
    """
    found: set[Site] = set()
    for item in filter(None, (part.strip() for part in selection.split(","))):
        found.update(_select_item(item, n_layers, point))
    if not found:
        raise SiteError(f"selection {selection!r} names no site; try 'all', 'first,middle,last' or '0,7,15'")
    return tuple(sorted(found, key=_model_order))


def _model_order(site: Site) -> tuple[float, int]:
    if site.layer is None:
        return (-1.0, 0) if site.point == "embed" else (float("inf"), 0)
    return (site.layer, POINTS.index(site.point))


def _select_item(item: str, n_layers: int, default_point: str) -> list[Site]:
    if item in OUTER:
        return [Site(None, item)]
    match = _ITEM.match(item)
    point = (match["point"] or default_point) if match else ""
    if match is None or point not in POINTS:
        raise SiteError(f"cannot read {item!r}: expected e.g. 7, -1, 10-20:2, all, first, middle, last, 19.mlp_out")
    layers = _layers(match["layers"], n_layers)
    outside = [layer for layer in layers if not 0 <= layer < n_layers]
    if outside or not layers:
        raise SiteError(f"{item!r} lies outside this model, which has layers 0 to {n_layers - 1}")
    return [Site(layer, point) for layer in layers]


def _layers(text: str, n_layers: int) -> list[int]:
    named = {"first": 0, "middle": n_layers // 2, "last": n_layers - 1}
    if text == "all":
        return list(range(n_layers))
    if text in named:
        return [named[text]]
    if bounds := re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", text):
        return list(range(int(bounds[1]), int(bounds[2]) + 1, max(1, int(bounds[3] or 1))))
    layer = int(text)
    return [layer + n_layers if layer < 0 else layer]
