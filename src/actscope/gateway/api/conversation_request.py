"""Parsing of requests of the Responses API and the Messages API: the body for the engine, and the id of its request."""

from __future__ import annotations

import uuid

import msgspec
from msgspec import Raw

from actscope.gateway.api.completion_request import XARGS, Call, into_xargs, read_ask
from actscope.serving.errors import Problem

RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_value = msgspec.json.decode

_BACKGROUND = (
    "actscope: the answer of a background response comes before its tokens: leave `actscope` out, and ask "
    "GET /v1/actscope/requests/{id of the response} for its scores"
)
_UNPLUGGED = "actscope: the engine runs without actscope and has no scores: leave the field out"


def read_conversation(path: str, raw: bytes, kind: str) -> Call:
    """Parse the body of a request.

    The id of its engine request is known before it is sent. vLLM and the hf engine take the id of a response from `request_id`
    in the body, and name its first pass `<id>_0`. vLLM takes the id of a message from `X-Request-Id`, as for a chat completion.

    Args:
        path: `RESPONSES` or `MESSAGES`.
        raw: Body as JSON. Its types have been validated already.
        kind: Kind of the engine. "" if it has no card; such an engine is sent no fields that the client did not send.

    Returns:
        The call. Fields that the gateway does not use keep their bytes.

    Raises:
        Problem: 400 if the body is not valid JSON, or if scores are requested that cannot be in the answer.
    """
    try:
        fields = _fields(raw)
        ask = read_ask(_value(fields.pop("actscope", b"null")))
        background = _value(fields.get("background", b"null")) is True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    if ask is not None and not kind:
        raise Problem(400, _UNPLUGGED, param="actscope", code="no_scores")
    if ask is not None and background:
        raise Problem(400, _BACKGROUND, param="actscope", code="no_scores")
    if kind == "vllm" and ask is not None and ask.options.given:
        fields[XARGS] = into_xargs(fields, ask.options)
    request_id = uuid.uuid4().hex
    response = f"resp_{request_id}" if path == RESPONSES else f"chatcmpl-{request_id}"
    if kind and path == RESPONSES:
        fields["request_id"] = Raw(msgspec.json.encode(response))
    return Call(
        path=path,
        body=msgspec.json.encode(fields),
        request_id=request_id,
        response=response,
        choices=() if background else (f"{response}_0" if path == RESPONSES else response,),
        n=1,
        model=str(_value(fields.get("model", b"null")) or ""),
        stream=_value(fields.get("stream", b"null")) is True,
        ask=ask,
        wants_token_ids=False,
        has_token_ids=False,
    )
