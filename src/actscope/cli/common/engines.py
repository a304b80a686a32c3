"""Running engines, for the commands that talk to one: finding its cards, and asking its control side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actscope.errors import UpstreamError

if TYPE_CHECKING:
    import httpx

    from actscope.ring.discovery import EngineCard

_ADVICE = "start one with: actscope serve MODEL, or run vLLM with actscope's plugin"


def engine_cards(engine: str) -> list[EngineCard]:
    """The cards of all parts of the engine with this card id, in their order; of the newest if "".

    Raises UpstreamError when there is none.
    """
    from actscope.ring.discovery import read_cards

    cards = read_cards()
    chosen = next((card for card in cards if engine in ("", card.id)), None)
    if chosen is None:
        raise UpstreamError(f"no engine {engine} runs; {_ADVICE}" if engine else f"no engine runs; {_ADVICE}")
    parts = [card for card in cards if card.group == chosen.group] if chosen.parts > 1 else [chosen]
    return sorted(parts, key=lambda card: card.part)


def ask(card: EngineCard, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """One call to the control side that a card names. Raises UpstreamError when it does not answer."""
    import httpx

    address = card.control or card.endpoint
    unix = address.removeprefix("unix:") if address.startswith("unix:") else None
    base = "http://engine" if unix else address
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=unix), base_url=base, timeout=60) as client:
            return client.request(method, path, json=body)
    except httpx.TransportError as error:
        raise UpstreamError(f"the engine {card.id} does not answer: {error}") from error


def refusal(answer: httpx.Response) -> dict[str, Any]:
    """The engine's own error object; empty when it has none in OpenAI's shape."""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
