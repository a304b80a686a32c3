"""Which engine a target means, and which cards belong to the server at an address."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from actscope.gateway.upstream.process_tree import descends, is_vllm, servers_of
from actscope.ring.discovery import EngineCard, read_cards

Cards = tuple[EngineCard, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Where an engine answers, and the cards of its parts in their order; none when it runs without actscope."""

    endpoint: str
    cards: Cards = ()
    doubt: str = ""
    """Why the cards may not be the server's, or why there are none, for a person to read."""

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(card.id for card in self.cards)


def is_address(target: str) -> bool:
    return target.startswith(("unix:", "http://", "https://"))


def engines() -> list[Cards]:
    """The engines that run here, newest first, each with the cards of all its parts; one that lacks a part is not up."""
    cards = read_cards()
    newest = {_engine_of(card): card.started_ns for card in reversed(cards)}
    ordered = sorted(cards, key=lambda c: (-newest[_engine_of(c)], _engine_of(c), c.part))
    groups = [tuple(group) for _, group in groupby(ordered, _engine_of)]
    return [group for group in groups if [c.part for c in group] == list(range(group[0].parts))]


def _engine_of(card: EngineCard) -> str:
    """What parts of one engine have in common; data parallel engines share a group, and are not parts."""
    return card.group if card.parts > 1 else card.id


def by_card(target: str) -> Found | None:
    """The engine with this card id, or the newest when `target` is ""; only one that says where it takes requests."""
    for cards in engines():
        endpoint = next(filter(None, map(attrgetter("endpoint"), cards)), "")
        if endpoint and target in ("", *(c.id for c in cards)):
            return Found(endpoint, cards)
    return None


def homeless() -> Cards:
    """The newest engine that does not say where it takes requests (vLLM's server is not told to it)."""
    return next((cards for cards in engines() if not any(c.endpoint for c in cards)), ())


def claimed(address: str) -> Found | None:
    """The engine whose card names this address."""
    return next((Found(address, cards) for cards in engines() if any(c.endpoint == address for c in cards)), None)


def at_address(address: str, models: Iterable[str]) -> Found:
    """What is known of the server at `address`, which serves `models` (ids and roots, as `GET /v1/models` has them).

    The engine of the processes that listen there; where these cannot be seen (another container) or are none of vLLM's (a
    proxy), the newest one with that model.
    """
    unclaimed = [cards for cards in engines() if not any(c.endpoint for c in cards)]
    servers = servers_of(address) if unclaimed else frozenset()
    related = [cards for cards in unclaimed if any(descends(c.pid, servers) for c in cards)]
    if related:
        doubt = f"the server has {len(related)} engines (data parallel?), and one is watched" if related[1:] else ""
        return Found(address, related[0], doubt)
    if any(map(is_vllm, servers)):
        return Found(address, (), f"{_named(unclaimed)} runs here, but is another server's")
    return _of_model(address, unclaimed, {_plain(m) for m in models})


def _of_model(address: str, unclaimed: Sequence[Cards], models: set[str]) -> Found:
    fitting = [cards for cards in unclaimed if any(_fits(c, models) for c in cards)]
    if not fitting:
        others = f"{_named(unclaimed)} runs here, which serves another model" if unclaimed else ""
        return Found(address, (), others)
    doubt = "several engines here serve this model, and the newest is taken: it may be another server's"
    return Found(address, fitting[0], doubt if fitting[1:] else "")


def _fits(card: EngineCard, models: set[str]) -> bool:
    return not models.isdisjoint({_plain(card.model), _plain(card.tokenizer)} - {""})


def _plain(name: str) -> str:
    """A directory by its one name; a model's id as it is."""
    return os.path.realpath(name) if os.path.isdir(name) else name


def _named(engines: Sequence[Cards]) -> str:
    return ", ".join(f"engine {cards[0].id} ({cards[0].model})" for cards in engines)
