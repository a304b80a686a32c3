"""Find running engines by their cards, and call their control API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actscope.errors import UpstreamError
from actscope.runtime.decoding import decode_json
from actscope.runtime.printable import printable

if TYPE_CHECKING:
    import httpx

    from actscope.ring.discovery import EngineCard

#: Limits of one answer of a server, in bytes and in seconds.
_MOST_BYTES = 8 << 20
_SECONDS = 10.0

_ADVICE = "start one with: actscope serve MODEL, or run vLLM with actscope's plugin"


def engine_replicas(engine: str) -> list[list[EngineCard]]:
    """Return the cards of the engines of one server: of each data-parallel engine the cards of its parts (pipeline stages).

    Args:
        engine: Card id of any part. "": the newest engine's server.

    Returns:
        A list for each engine, in the order of the engines, with its cards in the order of the parts.

    Raises:
        UpstreamError: No such engine runs.
    """
    from actscope.ring.discovery import read_cards

    cards = read_cards()
    chosen = next((card for card in cards if engine in ("", card.id)), None)
    if chosen is None:
        raise UpstreamError(
            f"no engine {engine} is running; {_ADVICE}" if engine else f"no engine is running; {_ADVICE}"
        )
    server = [card for card in cards if card is chosen or (chosen.group and card.group == chosen.group)]
    replicas: dict[int, list[EngineCard]] = {}
    for card in sorted(server, key=lambda card: (card.replica, card.part)):
        replicas.setdefault(card.replica, []).append(card)
    return list(replicas.values())


def ask(card: EngineCard, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """Send one request to the control API of an engine (`card.control`, else `card.endpoint`), with a timeout of 60 seconds.

    Raises:
        UpstreamError: The engine does not answer. An answer with an error status is returned.
    """
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
    """Return the error object of an answer in OpenAI's shape, or {} if it has none."""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def asked(base: str, path: str, token: str) -> tuple[int, dict[str, object]]:
    """Return status and JSON object of an answer; {} if it is none. Raises UpstreamError if there is no answer, or a huge one."""
    import httpx

    headers = {"authorization": f"Bearer {token}"} if token else {}
    body = bytearray()
    try:
        with httpx.stream("GET", base + path, headers=headers, timeout=_SECONDS, trust_env=False) as answer:
            for piece in answer.iter_raw():
                body += piece
                if len(body) > _MOST_BYTES:
                    raise UpstreamError(f"{base}{path}: the answer is larger than {_MOST_BYTES >> 20} MiB")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UpstreamError(f"{base} does not answer: {printable(str(error) or type(error).__name__)}") from error
    try:
        return answer.status_code, decode_json(bytes(body), dict[str, object], UpstreamError, f"{base}{path}")
    except UpstreamError:
        return answer.status_code, {}
