"""Request ids: the engine's own, which the ring has, and those that clients see, which several requests may share.

    1_cmpl-trace7-0-9f3a01bc    the engine's own id of a choice: unique, since vLLM appends eight random digits
    1_cmpl-trace7-0             its external id: choice 1 of prompt 0
      cmpl-trace7               the response's id, in the engine's answer
      resp_x_0                  external id of one turn of response `resp_x`

A client chooses `trace7` (`X-Request-Id`), so two of its requests may have the same one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from actscope.ring.discovery import EngineCard

_VLLM_SUFFIX = re.compile(r"-[0-9a-f]{8}\Z")
#: `resp_x_0`: one turn of a response.
_TURN = re.compile(r"(resp_.+)_\d{1,6}", re.DOTALL)
#: `1_chatcmpl-x` and `1_cmpl-x-0`: one of several choices. `cmpl-x-0`: one prompt of a completion.
_CHOICE = re.compile(r"(?:\d{1,6}_)?(?:(chatcmpl-.+)|(cmpl-.+)-\d{1,6})", re.DOTALL)


def external_id(card: EngineCard) -> Callable[[str], str]:
    """Return the function that maps request ids in the ring of this card's engine to the ids that clients see."""
    if card.kind == "vllm" and not card.plain_ids:
        return lambda request: _VLLM_SUFFIX.sub("", request)
    return lambda request: request


def response_id(external: str) -> str:
    """Return the id of the response that a request belongs to, from its external id; that id if it has another form."""
    found = _TURN.fullmatch(external) or _CHOICE.fullmatch(external)
    return next(filter(None, found.groups())) if found else external
