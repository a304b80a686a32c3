"""Ids of requests in vLLM's dialect, and the ids of the responses that clients have."""

from __future__ import annotations

import re

#: `resp_x_0`: one turn of a response.
_PASS = re.compile(r"(resp_.+)_\d+")
#: `1_chatcmpl-x` and `1_cmpl-x-0`: one of several choices. `cmpl-x-0`: one prompt of a completion.
_CHOICE = re.compile(r"(?:\d+_)?(?:(chatcmpl-.+)|(cmpl-.+)-\d+)")


def response_of(request: str) -> str:
    """Return the id of the response that a request belongs to; the request's own id if it has another form."""
    found = _PASS.fullmatch(request) or _CHOICE.fullmatch(request)
    return next(filter(None, found.groups())) if found else request
