"""One sentence that says why a token came when it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actscope.metrics.timeline.parts import Gap
from actscope.metrics.timeline.stamps import TimedPass

UNEXPLAINED = "unexplained"


def main_part(gap: Gap) -> str:
    """Return the name of the longest part of a gap, or "unexplained" if more than that is left over; "" without length."""
    sums = {**gap.sums(), UNEXPLAINED: gap.unexplained_ns}
    name = max(sums, key=lambda key: sums[key])
    return name if sums[name] else ""


def sentence(gap: Gap, usual_ns: int | None = None) -> str:
    """Return the sentence of a gap.

    Args:
        gap: The gap.
        usual_ns: The median gap of the request, for comparison; None: there is none.
    """
    name = main_part(gap)
    if not name:
        index = gap.stamps.index
        return f"Token {index} came together with token {index - 1}." if index else "Token 0 came at once."
    whole = _came(gap, usual_ns)
    ns = gap.unexplained_ns if name == UNEXPLAINED else gap.sums()[name]
    return f"{whole}: {milliseconds(ns)} of it {_REASONS[name](gap)}."


def milliseconds(ns: int) -> str:
    """Return a length of time in milliseconds, with three digits or more."""
    value = ns / 1e6
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms" if value >= 0.1 else f"{value:.3f} ms"


def _came(gap: Gap, usual_ns: int | None) -> str:
    index, length = gap.stamps.index, milliseconds(gap.ns)
    if index == 0:
        after = "the request" if gap.stamps.where == "client" or gap.stamps.asked_ns else "the engine began with it"
        return f"Token 0 came {length} after {after}"
    usual = f" (the median is {milliseconds(usual_ns)})" if usual_ns is not None else ""
    return f"Token {index} came {length} after token {index - 1}{usual}"


def _others(gap: Gap) -> str:
    return f"the engine ran {_kinds(_during(gap, 'other_passes'))} without this request"


def _delivery(gap: Gap) -> str:
    """Name what the engine computed meanwhile: its HTTP server shares the processors, and the interpreter, with the model."""
    ran = _during(gap, "delivery")
    meanwhile = f", while the engine ran {_kinds(ran)} without this request" if ran else ""
    return f"the token was on its way from the engine to the gateway{meanwhile}"


def _during(gap: Gap, name: str) -> list[TimedPass]:
    """Return the passes of others that ran in the parts of that name."""
    parts = [part for part in gap.parts if part.name == name]
    return [p for p in gap.others if any(p.scheduled_ns < part.end_ns and p.over_ns > part.start_ns for part in parts)]


def _kinds(passes: Sequence[TimedPass]) -> str:
    prompt, requests = sum(p.n_prompt_rows for p in passes), max((p.n_requests for p in passes), default=0)
    what = f"{_count(len(passes), 'pass', 'passes')} of {_count(requests, 'request')}" if passes else "passes"
    return what + (f" with {_count(prompt, 'prompt token')}" if prompt else "")


def _pass(gap: Gap) -> str:
    own = gap.stamps.passes
    if not own:
        return "the model computed its pass"
    others, prompt = max(p.n_requests for p in own) - 1, sum(p.n_prompt_rows for p in own)
    shared = f"which it shared with {_count(others, 'other request')}" if others else "which it had to itself"
    kind = "its pass" if len(own) == 1 else f"its {len(own)} passes"
    return f"the model computed {kind}, {shared}" + (f", with {_count(prompt, 'prompt token')}" if prompt else "")


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _plain(text: str) -> Callable[[Gap], str]:
    return lambda gap: text


_REASONS: dict[str, Callable[[Gap], str]] = {
    "request": _plain("the gateway needed to send the request to the engine"),
    "queue": _plain("the request waited in the engine for its first pass"),
    "scheduling": _plain("the engine did other work before it began the token's pass"),
    "other_passes": _others,
    "preparing": _plain("the engine prepared the token's pass"),
    "pass": _pass,
    "publishing": _plain("the engine labeled and published the rows of the pass"),
    "sampling": _plain("the engine drew the tokens of the pass"),
    "delivery": _delivery,
    "gateway": _plain("the gateway held it, to add scores or because of other work"),
    "send_buffer": _plain("the token lay in the gateway's send buffer, because the client's side had not taken it"),
    UNEXPLAINED: _plain("is not explained, because a time stamp of it is missing"),
}
