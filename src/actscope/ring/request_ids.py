"""Names of requests in a ring: the engine's ids, shortened if a span record has no room for them.

    1_cmpl-<trace>-0-9f3a01bc              the engine's id of choice 1 of prompt 0, 120 bytes at most
    1_cmpl-<start>...<hash>-0-9f3a01bc     a longer one: of `<trace>`, which the client chose, its first characters and a hash

The hash is of the whole `<trace>`, so the same id always gets the same name, and others another one. What vLLM puts around it
(choice, kind, prompt, random suffix) stays, so that a choice, its response and the engine's id still belong together.
"""

from __future__ import annotations

import hashlib
import re

from actscope.ring.layout import MAX_REQUEST_ID

_BEFORE = re.compile(r"(?:\d{1,6}_)?(?:(?:chat)?cmpl-)?")
_SUFFIX = re.compile(r"-[0-9a-f]{8}\Z")
_PROMPT = re.compile(r"-\d{1,6}\Z")
_START_BYTES = 40


def ring_id(request: str) -> str:
    """Return the name of an engine's request id in rings and recordings: itself, or a shorter one.

    A name has at most `MAX_REQUEST_ID` bytes of UTF-8, and is valid Unicode.
    """
    if _fits(request):
        return request
    return _short(request, suffix=True, prompt=True)


def ring_ids(asked: str) -> list[str]:
    """Return the names under which a request may be known that a client asks for by the id of its response or of a choice.

    The id itself comes first. A long one may have been shortened, depending on what vLLM has put behind it.
    """
    if _fits(asked) and len(asked.encode()) <= MAX_REQUEST_ID - len("-00000000") - len("-000000"):
        return [asked]
    short = [_short(asked, suffix=suffix, prompt=prompt) for suffix in (False, True) for prompt in (False, True)]
    return list(dict.fromkeys([asked, *short]))


def _fits(request: str) -> bool:
    try:
        return len(request.encode()) <= MAX_REQUEST_ID
    except UnicodeEncodeError:
        return False


def _short(request: str, *, suffix: bool, prompt: bool) -> str:
    """Return the id with what the client chose of it shortened.

    Args:
        request: The id.
        suffix: Whether vLLM's random suffix is at its end.
        prompt: Whether the number of the prompt is before that, in the id of a text completion.
    """
    found = _BEFORE.match(request)
    assert found is not None
    before, trace = found[0], request[found.end() :]
    trace, after = _cut(trace, _SUFFIX) if suffix else (trace, "")
    if prompt and before.endswith("cmpl-") and not before.endswith("chatcmpl-"):
        trace, number = _cut(trace, _PROMPT)
        after = number + after
    start = trace.encode("utf-8", "replace")[:_START_BYTES].decode("utf-8", "ignore")
    digest = hashlib.sha256(trace.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{before}{start}...{digest}{after}"


def _cut(text: str, end: re.Pattern[str]) -> tuple[str, str]:
    found = end.search(text)
    return (text, "") if found is None else (text[: found.start()], found[0])
