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
"""The cards of one replica: of all parts of one engine, in their order."""


@dataclass(frozen=True, slots=True)
class Found:
    """A server that was found.

    Attributes:
        endpoint: Address of its OpenAI API.
        replicas: The cards of each of its engines. Empty if it runs without actscope.
    """

    endpoint: str
    replicas: tuple[Cards, ...] = ()
    doubt: str = ""
    """Human-readable reason why the cards may belong to another server, or why there are none."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids of all cards."""
        return tuple(card.id for cards in self.replicas for card in cards)

    @property
    def expected(self) -> int:
        """Return the number of engines that the cards say there are, on all hosts."""
        groups: dict[str, int] = {}
        for first, *_ in self.replicas:
            groups[first.group or first.id] = max(first.replicas, groups.get(first.group or first.id, 0))
        return max(sum(groups.values()), len(self.replicas))


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


def _engine_of(card: EngineCard) -> tuple[str, int]:
    """Return the key that the parts of one engine share. The data-parallel engines of a server share only its group."""
    return (card.group, card.replica) if card.parts > 1 else (card.id, 0)


def _in_order(replicas: Iterable[Cards]) -> tuple[Cards, ...]:
    """Return replicas server by server, the newest server first, each by the replicas' numbers."""
    found = list(replicas)
    newest: dict[str, int] = {}
    for first, *_ in found:
        group = first.group or first.id
        newest[group] = max(newest.get(group, 0), first.started_ns)
    return tuple(sorted(found, key=lambda c: (-newest[c[0].group or c[0].id], c[0].group or c[0].id, c[0].replica)))


def by_card(target: str) -> Found | None:
    """Return the engine with this card id, or the newest one if `target` is "". Only engines with a known endpoint count."""
    for cards in engines():
        endpoint = next(filter(None, map(attrgetter("endpoint"), cards)), "")
        if endpoint and target in ("", *(c.id for c in cards)):
            return Found(endpoint, (cards,))
    return None


def without_endpoint() -> Cards:
    """Return the newest engine without a known endpoint (the vLLM plugin does not know its server's address), or ()."""
    return next((cards for cards in engines() if not any(c.endpoint for c in cards)), ())


def claimed(address: str) -> Found | None:
    """Return the engine whose card names this address as its endpoint, or None."""
    return next((Found(address, (cards,)) for cards in engines() if any(c.endpoint == address for c in cards)), None)


def at_address(address: str, models: Iterable[str]) -> Found:
    """Match the server at an address with the cards of the engines without a known endpoint.

    Its engines are those that descend from a process listening there. If those processes are not visible (another container) or
    not vLLM's (a router), they are all engines with the same model, since a request may run in any of them.

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
        return Found(address, _in_order(related))
    if any(map(is_vllm, servers)):
        return Found(address, (), f"{_named(unclaimed)} runs here, but belongs to another server" if unclaimed else "")
    return _of_model(address, unclaimed, {_plain(m) for m in models})


def _of_model(address: str, unclaimed: Sequence[Cards], models: set[str]) -> Found:
    fitting = [cards for cards in unclaimed if any(_fits(c, models) for c in cards)]
    if not fitting:
        others = f"{_named(unclaimed)} runs here, but serves another model" if unclaimed else ""
        return Found(address, (), others)
    servers = {cards[0].group or cards[0].id for cards in fitting}
    doubt = f"{len(servers)} servers here have this model; all are read, and one may not be behind this address"
    return Found(address, _in_order(fitting), doubt if len(servers) > 1 else "")


def _fits(card: EngineCard, models: set[str]) -> bool:
    return not models.isdisjoint({_plain(card.model), _plain(card.tokenizer)} - {""})


def _plain(name: str) -> str:
    """Return a directory's canonical path; a model id unchanged."""
    return os.path.realpath(name) if os.path.isdir(name) else name


def _named(engines: Sequence[Cards]) -> str:
    return ", ".join(f"engine {cards[0].id} ({cards[0].model})" for cards in engines)
