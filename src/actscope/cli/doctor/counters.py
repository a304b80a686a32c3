"""The doctor's checks of what was lost: of the engines on this machine, and of a running gateway or vLLM server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from actscope.cli.common.engines import asked
from actscope.cli.common.findings import Finding
from actscope.counters import CounterReport, printable, summed
from actscope.errors import ActscopeError

#: A JSON object of a server.
Answer = dict[str, object]


def is_address(text: str) -> bool:
    """Return whether the argument of the command is a server's address."""
    return text.startswith(("http://", "https://"))


def of_this_machine() -> Iterator[Finding]:
    """Report what the engines of this user have lost: one finding for each counter above zero, NO for each."""
    from actscope.ring.discovery import read_cards

    for card in read_cards():
        yield from _of_engine(card.id)


def of_server(address: str, token: str) -> Iterator[Finding]:
    """Report what a gateway and its engine have lost, or the engines of a vLLM server on this machine."""
    base = address.rstrip("/").removesuffix("/v1")
    try:
        status, info = asked(base, "/v1/actscope/info", token)
        if status == 404:
            yield from _of_vllm(base, token)
        elif status in (401, 403):
            remedy = "give the token that the server printed when it started: --token TOKEN, or ACTSCOPE_TOKEN"
            yield Finding("server", False, f"{base} answers {status}: {_message(info)}", remedy)
        elif status != 200 or not isinstance(info.get("troubles"), list):
            yield Finding(
                "server", False, f"{base} answers {status}", "name the address of `actscope serve` or `gateway`"
            )
        else:
            yield from _of_gateway(base, info)
    except ActscopeError as error:
        yield Finding("server", False, str(error), "see that it runs, and name its address: http://127.0.0.1:6969")


def _of_gateway(base: str, info: Answer) -> Iterator[Finding]:
    engine = _object(info.get("engine"))
    state = f"{engine.get('kind')} engine with {engine.get('model')}" if engine.get("state") == "up" else "no engine"
    remedy = "" if engine.get("state") == "up" else "see the gateway's log for why it finds no engine"
    yield Finding("server", not remedy, printable(f"gateway {info.get('version')} at {base}, {state}"), remedy)
    troubles = map(_object, _list(info.get("troubles")))
    told = [(str(one.get("name")), one.get("value"), str(one.get("help")), str(one.get("todo"))) for one in troubles]
    yield from _findings(told, "the gateway and its engine")


def _of_vllm(base: str, token: str) -> Iterator[Finding]:
    from actscope.gateway.upstream.discovery import at_address, claimed

    status, models = asked(base, "/v1/models", token)
    if status != 200:
        yield Finding("server", False, f"{base} answers {status}: {_message(models)}", "give its API key: --token KEY")
        return
    listed = map(_object, _list(models.get("data")))
    names = [str(one[name]) for one in listed for name in ("id", "root") if one.get(name)]
    found = claimed(base) or at_address(base, names)
    if not found.ids:
        why = printable(found.doubt) or "no engine with actscope belongs to it on this machine"
        remedy = "run the doctor as the engine's user on its machine, or name the address of the gateway"
        yield Finding("server", False, f"{base}: {why}", remedy)
        return
    yield Finding("server", True, printable(f"{base}, engine {', '.join(found.ids)}"), printable(found.doubt))
    for card_id in found.ids:
        yield from _of_engine(card_id)


def _of_engine(card_id: str) -> Iterator[Finding]:
    from actscope.ring.counter_files import read_reports

    reports = read_reports(card_id)
    if not reports:
        yield Finding("counters", True, f"engine {card_id} has published none yet")
        return
    told = [(one.name, one.value, one.help, one.todo) for one in summed(reports) if one.tells]
    yield from _findings(told, f"engine {card_id}, {_rows(reports)} rows")


def _rows(reports: Sequence[CounterReport]) -> int:
    return next((one.value for report in reports for one in report.counters if one.name == "model_rows"), 0)


def _findings(told: Iterable[tuple[str, object, str, str]], whose: str) -> Iterator[Finding]:
    found = [
        Finding(printable(name), False, printable(f"{value}: {help}"), printable(todo))
        for name, value, help, todo in told
    ]
    yield from found or [Finding("counters", True, printable(f"{whose}: nothing was lost"))]


def _message(answer: Answer) -> str:
    return printable(str(_object(answer.get("error")).get("message", "it gives no reason")))[:300]


def _object(value: object) -> Answer:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
