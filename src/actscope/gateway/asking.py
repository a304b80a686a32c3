"""What a completion request asks for, and the ids that its choices will have."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import msgspec

from actscope.gateway.problems import Problem


@dataclass(frozen=True, slots=True)
class Ask:
    """The `actscope` field of a request, understood."""

    probes: tuple[str, ...] | None = None
    prompt: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """One completion request, ready to be sent to the engine."""

    path: str
    body: bytes
    """What the engine is sent: the client's own body, with token ids asked for and `actscope` taken out."""
    request_id: str
    """`X-Request-Id` of the upstream request."""
    response: str
    """Id of the answer."""
    choices: tuple[str, ...]
    """The engine's request id of each choice, by its index."""
    model: str
    stream: bool
    ask: Ask | None
    wants_token_ids: bool
    """Whether the client itself asked for token ids."""


def read_call(path: str, raw: bytes, max_n: int) -> Call:
    """Understand the body of a completion request (its types have been checked); raises Problem."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    ask = _read_ask(body.pop("actscope", None))
    wants_token_ids = body.get("return_token_ids") is True
    body["return_token_ids"] = True
    n, prompts = _count(body, max_n)
    request_id = uuid.uuid4().hex
    response = f"chatcmpl-{request_id}" if path.endswith("/chat/completions") else f"cmpl-{request_id}"
    return Call(
        path=path,
        body=msgspec.json.encode(body),
        request_id=request_id,
        response=response,
        choices=_choice_ids(response, n, prompts),
        model=str(body.get("model") or ""),
        stream=body.get("stream") is True,
        ask=ask,
        wants_token_ids=wants_token_ids,
    )


def _read_ask(field: Any) -> Ask | None:
    if field is None or field is False:
        return None
    if field is True:
        return Ask()
    probes = field.get("probes")
    prompt = field.get("prompt")
    return Ask(None if probes is None else tuple(dict.fromkeys(probes)), prompt is not False)


def _count(body: dict[str, Any], max_n: int) -> tuple[int, int]:
    """Choices for each prompt, and prompts (0 for a chat)."""
    n = body.get("n") or 1
    prompt = body.get("prompt")
    prompts = 0 if "messages" in body else 1
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = len(prompt)
    if n * max(prompts, 1) > max_n:
        raise Problem(
            400,
            f"n: at most {max_n} choices in one request, found {n * max(prompts, 1)}",
            param="n",
            code="invalid_value",
        )
    return n, prompts


def _choice_ids(response: str, n: int, prompts: int) -> tuple[str, ...]:
    """vLLM's names: the response's id, `-<prompt>` for a plain completion, `<choice>_` before it when n > 1."""
    stems = [f"{response}-{j}" for j in range(prompts)] or [response]
    return tuple(stem if n == 1 else f"{i}_{stem}" for stem in stems for i in range(n))
