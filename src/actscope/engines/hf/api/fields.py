"""Fields of completion requests: those that are honoured, those that are refused by name, and those without effect.

Every field of OpenAI's and Anthropic's requests, of vLLM's extensions and of transformers' GenerationConfig is in one of the
three lists; tests compare them. A field that is in none of them is accepted with a warning in the log, as vLLM does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

import msgspec
from msgspec import Raw

from actscope.engines.hf.api.foreign_fields import EVEN_FALSE, REFUSED, WITHOUT_EFFECT
from actscope.errors import RequestRefused

_log = logging.getLogger("actscope.engine")


class StreamingOptions(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's `stream_options`, with vLLM's `continuous_usage_stats`. `include_obfuscation` only pads chunks."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Body(msgspec.Struct, kw_only=True):
    """Honoured fields that all requests share. null means the same as an absent field."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None


class _Completing(Body, kw_only=True):
    """Honoured fields that chat and text completions share."""

    stream_options: StreamingOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    echo: bool | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    response_format: dict[str, object] | None = None


class ChatBody(_Completing, kw_only=True):
    """Honoured fields of a chat completion request."""

    messages: list[dict[str, object]]
    max_completion_tokens: int | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, object]] | None = None
    tool_choice: str | dict[str, object] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    documents: list[dict[str, object]] | None = None
    reasoning_effort: str | None = None
    return_prompt_text: bool | None = None


class CompletionBody(_Completing, kw_only=True):
    """Honoured fields of a text completion request."""

    prompt: str | list[str | int | list[int]] | None = None
    logprobs: int | None = None


class ResponsesBody(Body, kw_only=True):
    """Honoured fields of a request of the Responses API."""

    input: str | list[dict[str, object]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: dict[str, object] | None = None
    reasoning: dict[str, object] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    tools: list[dict[str, object]] | None = None
    tool_choice: str | dict[str, object] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    request_id: str | None = None
    metadata: dict[str, object] | None = None
    parallel_tool_calls: bool | None = None
    service_tier: str | None = None
    user: str | None = None


class MessagesBody(Body, kw_only=True):
    """Honoured fields of a request of the Messages API (Anthropic's). `stop` is its `stop_sequences`."""

    messages: list[dict[str, object]]
    max_tokens: int
    system: str | list[dict[str, object]] | None = None
    stop_sequences: list[str] | None = None
    thinking: dict[str, object] | None = None
    output_config: dict[str, object] | None = None
    tools: list[dict[str, object]] | None = None
    tool_choice: dict[str, object] | None = None
    chat_template_kwargs: dict[str, object] | None = None


#: Fields that are honoured in one API only, and a value that means nothing.
ELSEWHERE = {name: (1,) if name in ("n", "best_of") else () for body in (ChatBody, CompletionBody, ResponsesBody, MessagesBody)
              for name in body.__struct_fields__}  # fmt: skip

#: Unknown fields that were warned of. The bound keeps clients from filling memory and log.
_MOST_WARNED = 200
_warned: set[str] = set()

B = TypeVar("B", ChatBody, CompletionBody, ResponsesBody, MessagesBody)


def decode_body(raw: bytes, kind: type[B]) -> B:
    """Decode and check the body of a request.

    Args:
        raw: The body as JSON.
        kind: Class of its honoured fields.

    Raises:
        RequestRefused: It is not JSON, a field has another type, or a field is refused. The error names the field.
    """
    try:
        body = msgspec.json.decode(raw, type=kind)
        others = msgspec.json.decode(raw, type=dict[str, Raw])
        for name in others.keys() - set(kind.__struct_fields__):
            _check_other(name, others[name])
    except msgspec.ValidationError as error:
        where = re.search(r"`\$\.(\w+)", str(error)) or re.search(r"required field `(\w+)`", str(error))
        raise RequestRefused(str(error).replace("$.", ""), param=where[1] if where else None) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestRefused(f"the body is not valid JSON: {error}") from error
    return body


def _check_other(name: str, raw: Raw) -> None:
    """Refuse a field that is not honoured, unless it cannot change the answer. Warn of an unknown one."""
    if name in WITHOUT_EFFECT:
        return
    if name in REFUSED or name in ELSEWHERE:
        reason, neutral = REFUSED.get(name) or ("this API does not have it", ELSEWHERE[name])
        value = msgspec.json.decode(raw)
        if (value is False and name in EVEN_FALSE) or not means_nothing(value, neutral):
            raise refuse(name, f"not supported: {reason}. Leave it out.")
    elif name not in _warned and len(_warned) < _MOST_WARNED:
        _warned.add(name)
        _log.warning("a request has the unknown field %.100r, which has no effect (told once)", name)


def means_nothing(value: object, neutral: tuple[object, ...] = ()) -> bool:
    """Return whether a value of a field means the same as its absence: null, false, empty, or one of `neutral`."""
    if value is None or value is False or value in ("", [], {}):
        return True
    return any(type(value) is type(one) and value == one for one in neutral)


def check_keys(field: str, given: Mapping[str, object] | None, known: Collection[str]) -> Mapping[str, object]:
    """Return the object that is the value of a field, empty for null.

    Args:
        field: Name of the field.
        given: Its value.
        known: Keys that are honoured, or that cannot change the answer.

    Raises:
        RequestRefused: It has another key, whose value means something. The error names the field and the key.
    """
    found = given or {}
    for key in sorted(found.keys() - set(known)):
        if not means_nothing(found[key]):
            raise refuse(field, f"{key:.100}: not supported: this engine would pass over it. Leave it out.")
    return found


def effort_of(field: str, given: Mapping[str, object]) -> str | None:
    """Return the key `effort` of a field's value. Raises RequestRefused unless it is a string or null."""
    effort = given.get("effort")
    if effort is not None and not isinstance(effort, str):
        raise refuse(field, f"effort: expected a string, found {effort!r:.100}")
    return effort


def refuse(param: str, message: str) -> RequestRefused:
    """Return the error for a field, whose name begins the message."""
    return RequestRefused(f"{param}: {message}", param=param)
