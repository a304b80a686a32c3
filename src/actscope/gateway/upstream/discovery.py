"""Engine discovery: the engine that a target names, and the cards that belong to the server at an address."""

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
    """An engine that was found.

    Attributes:
        endpoint: Address of its OpenAI API.
        cards: The cards of its parts, in order. Empty if it runs without actscope.
    """

    endpoint: str
    cards: Cards = ()
    doubt: str = ""
    """Human-readable reason why the cards may belong to another server, or why there are none."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids of the parts' cards, in order."""
        return tuple(card.id for card in self.cards)


def is_address(target: str) -> bool:
    """Return whether a target is an address, not a card id."""
    return target.startswith(("unix:", "http://", "https://"))


def engines() -> list[Cards]:
    """Return this user's running engines, newest first, each as the cards of all its parts. Incomplete ones are omitted."""
    cards = read_cards()
    newest = {_engine_of(card): card.started_ns for card in reversed(cards)}
    ordered = sorted(cards, key=lambda c: (-newest[_engine_of(c)], _engine_of(c), c.part))
    groups = [tuple(group) for _, group in groupby(ordered, _engine_of)]
    return [group for group in groups if [c.part for c in group] == list(range(group[0].parts))]


def _engine_of(card: EngineCard) -> str:
    """Return the key that the parts of one engine share. Data-parallel engines share a group but are not parts."""
    return card.group if card.parts > 1 else card.id


def by_card(target: str) -> Found | None:
    """Return the engine with this card id, or the newest one if `target` is "". Only engines with a known endpoint count."""
    for cards in engines():
        endpoint = next(filter(None, map(attrgetter("endpoint"), cards)), "")
        if endpoint and target in ("", *(c.id for c in cards)):
            return Found(endpoint, cards)
    return None


def without_endpoint() -> Cards:
    """Return the newest engine without a known endpoint: the vLLM plugin does not know its server's address. () if none."""
    return next((cards for cards in engines() if not any(c.endpoint for c in cards)), ())


def claimed(address: str) -> Found | None:
    """Return the engine whose card names this address as its endpoint, or None."""
    return next((Found(address, cards) for cards in engines() if any(c.endpoint == address for c in cards)), None)


def at_address(address: str, models: Iterable[str]) -> Found:
    """Match the server at an address with the cards of the engines without a known endpoint.

    The engine is the one that descends from a process listening there. If those processes are not visible (another
    container) or not vLLM's (a proxy), it is the newest engine with the same model.

    Args:
        address: Address of the server, `http://host:port`.
        models: The `id` and `root` of its models, from `GET /v1/models`.

    Returns:
        The address, with the cards that match. `doubt` says why the match is uncertain or missing.
    """
    unclaimed = [cards for cards in engines() if not any(c.endpoint for c in cards)]
    servers = servers_of(address) if unclaimed else frozenset()
    related = [cards for cards in unclaimed if any(descends(c.pid, servers) for c in cards)]
    if related:
        doubt = f"the server has {len(related)} engines (data parallel?), and only one is read" if related[1:] else ""
        return Found(address, related[0], doubt)
    if any(map(is_vllm, servers)):
        return Found(address, (), f"{_named(unclaimed)} runs here, but belongs to another server")
    return _of_model(address, unclaimed, {_plain(m) for m in models})


def _of_model(address: str, unclaimed: Sequence[Cards], models: set[str]) -> Found:
    fitting = [cards for cards in unclaimed if any(_fits(c, models) for c in cards)]
    if not fitting:
        others = f"{_named(unclaimed)} runs here, but serves another model" if unclaimed else ""
        return Found(address, (), others)
    doubt = "several engines here serve this model; the newest was chosen, which may belong to another server"
    return Found(address, fitting[0], doubt if fitting[1:] else "")


def _fits(card: EngineCard, models: set[str]) -> bool:
    return not models.isdisjoint({_plain(card.model), _plain(card.tokenizer)} - {""})


def _plain(name: str) -> str:
    """Return a directory's canonical path; a model id unchanged."""
    return os.path.realpath(name) if os.path.isdir(name) else name


def _named(engines: Sequence[Cards]) -> str:
    return ", ".join(f"engine {cards[0].id} ({cards[0].model})" for cards in engines)
