"""Sites: named points of a model, and the small grammar that selects them.

    layers.19.resid_post      the residual stream after block 19 (blocks are numbered from 0)
    embed, final_norm         before the first block, after the last norm

Selection grammar, comma separated:

    all | 0,7,15 | -1 | first,middle,last | 10-20 | 10-20:2 | 19.mlp_out | layers.19.resid_post | embed

Resolved against a model (`actscope.taps.anatomy.resolve`), a selection may also name modules by path, with globs:
`model.layers.*.mlp`, `encoder.**.dense`. `*` matches within one component of a path, `**` across components. A
trailing `:in` selects the module's input instead of its output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from actscope.errors import SiteError
from actscope.near_miss import site_for, why_no_site

POINTS = ("resid_pre", "attn_out", "mixer_out", "mlp_out", "resid_post")
#: Of these points a block usually has one: attention, or a mixer that is none (Mamba, a gated convolution).
INSTEAD = {"attn_out": "mixer_out", "mixer_out": "attn_out"}
OUTER = ("embed", "final_norm")
_LONGEST_ITEM = 1000
#: Suffix of the name of a site that is a module's input.
INPUT = ":in"

_N = r"\d{1,9}"
_ITEM = re.compile(rf"^(?:layers\.)?(?P<layers>all|first|middle|last|-?{_N}|{_N}-{_N}(?::{_N})?)(?:\.(?P<point>\w+))?$")
_GLOB = {"**": r".*", "*": r"[^.]*", "?": r"[^.]"}


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A named point of a model where activations are read.

    Attributes:
        layer: Number of the block, from 0; None for the two outer points and for modules.
        point: One of `POINTS` or `OUTER`, or the path of a module.
    """

    layer: int | None
    point: str

    @property
    def name(self) -> str:
        """Return the name of the site, such as `layers.19.resid_post` or `embed`."""
        return self.point if self.layer is None else f"layers.{self.layer}.{self.point}"

    @property
    def is_module(self) -> bool:
        """Whether the site is a module's output or input, named by the module's path."""
        return self.layer is None and self.point not in OUTER

    def __str__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, name: str) -> Site:
        """Parse a full site name.

        Module paths are rejected. They can only be checked against a model (see `actscope.taps.anatomy.resolve`), and a
        misspelled point must not be taken for one.

        Args:
            name: "layers.<number>.<point>", "embed" or "final_norm".

        Raises:
            SiteError: The name is anything else.
        """
        if name in OUTER:
            return cls(None, name)
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)", name)
        if match is None or match[2] not in POINTS:
            raise SiteError(
                f"site {name!r}: expected layers.<number>.<point> with point one of {', '.join(POINTS)}, "
                f"or one of {', '.join(OUTER)}{foreign_hint(name)}"
            )
        return cls(int(match[1]), match[2])


def select(selection: str, n_layers: int, point: str | Sequence[str] = "resid_post") -> tuple[Site, ...]:
    """Return the sites that a selection names.

    Args:
        selection: Items of the grammar above, separated by commas.
        n_layers: Number of the model's blocks.
        point: The point, or points, for items that name only layers.

    Returns:
        The sites in model order, without repeats.

    Raises:
        SiteError: An item is malformed or outside the model. The message names the item.
    """
    points = (point,) if isinstance(point, str) else tuple(point)
    found: set[Site] = set()
    for item in items_of(selection):
        found.update(_select_item(item, n_layers, points))
    return in_model_order(found)


def items_of(selection: str) -> list[str]:
    """Split a selection into its items. Raises SiteError if there are none, or one has over 1000 characters."""
    items = [item for part in selection.split(",") if (item := part.strip())]
    if any(len(item) > _LONGEST_ITEM for item in items):
        raise SiteError(f"an item of a selection has more than {_LONGEST_ITEM} characters")
    if not items:
        raise SiteError(f"selection {selection!r} names no site; try 'all', 'first,middle,last' or '0,7,15'")
    return items


def in_model_order(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Sort and deduplicate sites: embed, then the blocks in order and their points in order, then final_norm."""
    return tuple(sorted(set(sites), key=_model_order))


def is_named(item: str) -> bool:
    """Return whether an item of a selection names layers or outer points, rather than a module by its path."""
    match = _ITEM.match(item)
    return item in OUTER or (match is not None and (match["point"] is None or match["point"] in POINTS))


def has_point(item: str) -> bool:
    """Return whether an item of a selection says at which point of a block it is read."""
    match = _ITEM.match(item)
    return match is None or match["point"] is not None


def match_modules(item: str, paths: Sequence[str]) -> list[str]:
    """Return the module paths that an item of a selection matches, in the order of `paths`.

    Raises SiteError, which suggests similar names, if there are none.
    """
    pattern = item.removesuffix(INPUT)
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    compiled = re.compile("".join(_GLOB.get(part) or re.escape(part) for part in parts))
    found = [path for path in paths if path and compiled.fullmatch(path)]
    if not found:
        raise SiteError(f"site {item!r}: there is no such module, nor such a point{_near(pattern, paths)}")
    return found


def foreign_hint(name: str) -> str:
    """Return the end of an error about a site that another tool calls so, such as `blocks.0.hook_resid_post`; "" for others."""
    own, why = site_for(name), why_no_site(name)
    return f"; did you mean {own}?" if own else f"; {why}" if why else ""


def _near(pattern: str, paths: Sequence[str]) -> str:
    """Suggest similar names: sites for other tools' names, points of blocks, and paths (with globs if the pattern has one)."""
    if foreign := foreign_hint(pattern):
        return foreign
    known = [re.sub(r"\b\d+\b", "*", path) for path in paths] if "*" in pattern else list(paths)
    layer = re.match(r"^(?:layers\.)?(-?\d+|all)\.", pattern)
    named = [f"{layer[0]}{point}" for point in POINTS] if layer else [*OUTER, *POINTS]
    near = get_close_matches(pattern, dict.fromkeys([*named, *known]), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; list them with: model.named_modules()"
    return f"{hint} Points of a block are {', '.join(POINTS)}; outer points are {', '.join(OUTER)}"


def _model_order(site: Site) -> tuple[float, int]:
    if site.layer is None:
        return (-1.0, 0) if site.point == "embed" else (float("inf"), 0)
    return (site.layer, POINTS.index(site.point))


def _select_item(item: str, n_layers: int, default_points: tuple[str, ...]) -> list[Site]:
    if item in OUTER:
        return [Site(None, item)]
    match = _ITEM.match(item)
    points = ((match["point"],) if match["point"] else default_points) if match else ()
    if match is None or not points or any(point not in POINTS for point in points):
        usage = "expected e.g. 7, -1, 10-20:2, all, first, middle, last, 19.mlp_out"
        raise SiteError(f"cannot read {item!r}: {usage}{foreign_hint(item)}")
    layers = _layers(match["layers"], n_layers)
    outside = [layer for layer in layers if not 0 <= layer < n_layers]
    if outside or not layers:
        raise SiteError(f"{item!r} lies outside this model, which has layers 0 to {n_layers - 1}")
    return [Site(layer, point) for layer in layers for point in points]


def _layers(text: str, n_layers: int) -> list[int]:
    named = {"first": 0, "middle": n_layers // 2, "last": n_layers - 1}
    if text == "all":
        return list(range(n_layers))
    if text in named:
        return [named[text]]
    if bounds := re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", text):
        first, last, step = (int(bounds[i] or 1) for i in (1, 2, 3))
        return list(range(first, min(last, n_layers) + 1, max(1, step)))  # the caller refuses n_layers itself
    layer = int(text)
    return [layer + n_layers if layer < 0 else layer]


def select_from(selection: str, sites: Sequence[str]) -> list[int]:
    """Select sites of a feed.

    Args:
        selection: The grammar above, applied to the layers that the feed has (`last` and `-1` are its last layer), or full
            names. An empty string selects all.
        sites: The feed's sites.

    Returns:
        Indices into `sites`, ascending.

    Raises:
        SiteError: The feed lacks a named site. The message lists the sites that it has.
    """
    if not selection.strip():
        return list(range(len(sites)))
    found = {name for item in items_of(selection) for name in _named(item, sites)}
    return [i for i, name in enumerate(sites) if name in found]


def _named(item: str, sites: Sequence[str]) -> list[str]:
    if item in sites:
        return [item]
    if item == "all":
        return list(sites)
    layered = [_parsed(name) for name in sites]
    layers = sorted({site.layer for site in layered if site is not None and site.layer is not None})
    points = sorted({site.point for site in layered if site is not None and site.layer is not None})
    wanted = [site.name for site in _selected(item, layers, points)]
    found = [name for name in wanted if name in sites]
    if not found or (item.rpartition(".")[2].lstrip("-").isdigit() and len(found) < len(wanted) / max(1, len(points))):
        raise SiteError(f"site {item!r}: this feed has {', '.join(sites)}{foreign_hint(item)}")
    return found


def _selected(item: str, layers: Sequence[int], points: Sequence[str]) -> tuple[Site, ...]:
    """Return the sites of an item. Relative names (`last`, `-1`, `middle`) index the layers that the feed has."""
    if not layers:
        return ()
    head, dot, point = item.removeprefix("layers.").partition(".")
    relative = {"first": 0, "middle": len(layers) // 2, "last": -1}
    place = relative.get(head, int(head) if head.startswith("-") and head[1:].isdigit() else None)
    if place is not None and -len(layers) <= place < len(layers):
        item = f"{layers[place]}{dot}{point}"
    try:
        return select(item, layers[-1] + 1, points)
    except SiteError:
        return ()


def _parsed(name: str) -> Site | None:
    try:
        return Site.parse(name)
    except SiteError:
        return None
