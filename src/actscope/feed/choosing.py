"""Which of the feed's sites a request means."""

from __future__ import annotations

from collections.abc import Sequence

from actscope.errors import SiteError
from actscope.sites import Site, items_of, select


def choose(selection: str, sites: Sequence[str]) -> list[int]:
    """Places of the sites that `selection` names, in the feed's order; "" names all.

    The grammar is that of `actscope.sites` over the layers that the feed has (`last`, `-1`: its last), and full names. Raises
    SiteError, naming those there are, for what the feed does not have.
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
        raise SiteError(f"site {item!r}: this feed has {', '.join(sites)}")
    return found


def _selected(item: str, layers: Sequence[int], points: Sequence[str]) -> tuple[Site, ...]:
    """The sites of an item; relative names (`last`, `-1`, `middle`) count the layers that the feed has."""
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
