"""From the body of a completion request to the sequences that the engine runs."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from actscope.engines.hf.api.answers import AnswerFormat, Choice, CompletionJob
from actscope.engines.hf.api.fields import Body, ChatBody, CompletionBody, decode_body, means_nothing, refuse
from actscope.engines.hf.api.logprobs import LogprobFormat
from actscope.engines.hf.api.prompts import PromptTokens, render_chat, text_prompts, truncated, vocabulary_of
from actscope.engines.hf.engine import Engine
from actscope.engines.hf.request import Request, Sampling
from actscope.errors import RequestRefused

_MOST_BAD_WORDS, _MOST_BAD_CHARACTERS = 1000, 65_536
_MOST_LOGPROBS = 20
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def chat_job(engine: Engine, raw: bytes, request_id: str | None) -> CompletionJob:
    """Parse the body of a chat request. Raises RequestRefused, which names the field, if it is invalid or unsupported."""
    body = decode_body(raw, ChatBody)
    _check_format(body)
    check_tools(body.tools, body.tool_choice)
    chat = render_chat(engine.loaded, body)
    top, wanted = _chat_logprobs(body)
    form = AnswerFormat(
        "chat",
        wants_logprobs=wanted,
        role=chat.role,
        prompt_text=chat.prompt.text if body.return_prompt_text else None,
        **_form(engine, body),
    )
    tokens = _first_given(body.max_completion_tokens, body.max_tokens)
    return _job(engine, body, form, [chat.prompt], tokens, top if wanted else None, request_id, chat.last)


def completion_job(engine: Engine, raw: bytes, request_id: str | None) -> CompletionJob:
    """Parse the body of a completions request, with one or more choices per prompt. Raises RequestRefused like `chat_job`."""
    body = decode_body(raw, CompletionBody)
    _check_format(body)
    prompts = text_prompts(engine.loaded, body, engine.options.max_waiting)
    form = AnswerFormat(
        "text",
        wants_logprobs=body.logprobs is not None,
        prompt_only=bool(body.echo) and body.max_tokens == 0,
        **_form(engine, body),
    )
    tokens = 1 if form.prompt_only else _first_given(body.max_tokens, 16)
    return _job(engine, body, form, prompts, tokens, body.logprobs, request_id)


def _form(engine: Engine, body: ChatBody | CompletionBody) -> dict[str, Any]:
    """Return the arguments of `AnswerFormat` that both kinds share. Raises RequestRefused."""
    if body.stream_options is not None and not body.stream:
        raise refuse("stream_options", "only allowed with stream: true")
    if body.prompt_logprobs is not None and body.stream:
        raise refuse("prompt_logprobs", "not available in a stream: send stream: false")
    options = body.stream_options
    includes_usage = options is not None and bool(options.include_usage)
    return {
        "stream": bool(body.stream),
        "include_usage": includes_usage,
        "continuous_usage": includes_usage and options is not None and bool(options.continuous_usage_stats),
        "return_token_ids": bool(body.return_token_ids),
        "wants_prompt_logprobs": body.prompt_logprobs is not None,
        "logprobs": LogprobFormat(engine.loaded.tokenizer._tokenizer, bool(body.return_tokens_as_token_ids)),
    }


def _chat_logprobs(body: ChatBody) -> tuple[int, bool]:
    """Return the number of alternatives of each token, and whether log-probabilities are wanted at all."""
    if body.logprobs not in (None, False, True):
        raise refuse("logprobs", f"expected true or false, found {body.logprobs}; their number is top_logprobs")
    top = body.top_logprobs or 0
    if top and not body.logprobs:
        raise refuse("top_logprobs", "needs logprobs: true")
    if not 0 <= top <= _MOST_LOGPROBS:
        raise refuse("top_logprobs", f"expected 0 to {_MOST_LOGPROBS}, found {top}")
    return top, bool(body.logprobs)


def _check_format(body: ChatBody | CompletionBody) -> None:
    kind = (body.response_format or {}).get("type", "text")
    if kind != "text":
        raise refuse("response_format", "this engine does not constrain answers to a format; vLLM does. Leave it out.")
    if body.best_of not in (None, 1 if body.n is None else body.n):
        raise refuse("best_of", "this engine returns all answers that it draws: leave it out, or send the same as n")


def check_tools(tools: Sequence[object] | None, choice: object) -> None:
    """Raise RequestRefused if the model is to call tools. With the choice "none" they are only shown to it."""
    if tools and choice != "none":
        raise refuse(
            "tools",
            'not supported: this engine does not parse tool calls; vLLM does. With tool_choice "none" they are in the prompt.',
        )
    if not tools and not means_nothing(choice, ("none", "auto")):
        raise refuse("tool_choice", "not supported: this engine does not parse tool calls; vLLM does. Leave it out.")


def _first_given(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _job(
    engine: Engine,
    body: ChatBody | CompletionBody,
    form: AnswerFormat,
    prompts: list[PromptTokens],
    max_tokens: int | None,
    logprobs: int | None,
    given: str | None,
    last: str = "",
) -> CompletionJob:
    check_model(engine, body.model)
    n, most = 1 if body.n is None else body.n, engine.options.max_waiting
    if not 1 <= n * len(prompts) <= most:
        raise RequestRefused(
            f"n x prompts must lie between 1 and {most} (--max-waiting), found {n * len(prompts)}", param="n"
        )
    name = job_id(form.kind, given)
    echoes = bool(body.echo) and form.kind == "text"
    prompt_logprobs = _first_given(body.prompt_logprobs, logprobs if echoes else None)
    bad_words = _bad_words(engine, body.bad_words or ())
    choices = []
    for p, prompt in enumerate(prompts):
        ids, room = fitting(engine, prompt.ids, max_tokens, body.truncate_prompt_tokens, body.truncation_side)
        sampling = replace(
            sampling_of(engine, body, room),
            min_tokens=body.min_tokens or 0,
            allowed_token_ids=_ids(engine, "allowed_token_ids", body.allowed_token_ids, empty=False),
            bad_words=bad_words,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        before = (prompt.text if form.kind == "text" else last) if body.echo else ""
        for i in range(n):
            base = name if form.kind == "chat" else f"{name}-{p}"
            request = Request(base if n == 1 else f"{i}_{base}", ids, _seeded(sampling, i))
            choices.append(Choice(p * n + i, request, before))
    return CompletionJob(name, engine.loaded.name, choices, form)


def check_model(engine: Engine, model: str | None) -> None:
    """Raise RequestRefused if a request names another model."""
    name = engine.loaded.name
    if model not in (None, "", name):
        raise RequestRefused(
            f"The model `{model:.200}` does not exist; this engine serves `{name}`",
            param="model",
            code="model_not_found",
        )


def fitting(
    engine: Engine, ids: list[int], max_tokens: int | None, keep: int | None, side: str | None
) -> tuple[list[int], int]:
    """Return a prompt, truncated if the request says so, and the maximum number of tokens of its answer.

    Args:
        engine: The engine.
        ids: The prompt.
        max_tokens: Maximum of the request; None: what the context has room for.
        keep: `truncate_prompt_tokens` of the request.
        side: `truncation_side` of the request.

    Raises:
        RequestRefused: They do not fit the context.
    """
    least = 1 if max_tokens is None else max_tokens
    context = engine.loaded.max_context
    ids = truncated(ids, keep, side, context - least)
    engine.check(len(ids), least)
    return ids, context - len(ids) if max_tokens is None else max_tokens


def _seeded(sampling: Sampling, i: int) -> Sampling:
    """Return the sampling of choice `i` of a prompt: each has a seed of its own."""
    return sampling if sampling.seed is None or not i else replace(sampling, seed=(sampling.seed + i) % (1 << 63))


def job_id(kind: Literal["chat", "text"], given: str | None) -> str:
    """Return the id of an answer, as vLLM makes it of `X-Request-Id`. Raises RequestRefused for one of other characters."""
    if given is not None and not _REQUEST_ID.fullmatch(given):
        raise RequestRefused("X-Request-Id: expected 1 to 64 letters, digits, '.', '_' or '-'", param="X-Request-Id")
    return f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{given or uuid.uuid4().hex}"


def sampling_of(engine: Engine, body: Body, max_tokens: int) -> Sampling:
    """Return the sampling parameters that all APIs share. Those that a request leaves out are the model's own."""
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(body, name)) is not None}
    return Sampling(
        max_tokens=max_tokens,
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=_ids(engine, "stop_token_ids", body.stop_token_ids),
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=body.skip_special_tokens is not False,
        logit_bias=_bias(engine, body.logit_bias or {}),
        **(engine.loaded.sampling_defaults | given),
    )


def _ids(engine: Engine, name: str, ids: Sequence[int] | None, *, empty: bool = True) -> tuple[int, ...]:
    """Return token ids of a field without duplicates. Raises RequestRefused for one outside the vocabulary."""
    if ids is not None and not ids and not empty:
        raise refuse(name, "expected at least one id, found none: leave it out to allow all")
    size = vocabulary_of(engine.loaded)
    wrong = next((i for i in ids or () if not 0 <= i < size), None)
    if wrong is not None:
        raise refuse(name, f"token id {wrong} is outside the vocabulary of {size}")
    return tuple(dict.fromkeys(ids or ()))


def _bias(engine: Engine, bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """Return `logit_bias` by id, limited to -100 .. 100 like OpenAI's."""
    try:
        by_id = {int(token): min(max(value, -100.0), 100.0) for token, value in bias.items()}
    except ValueError as error:
        raise refuse("logit_bias", f"expected token ids as keys: {error}") from error
    _ids(engine, "logit_bias", list(by_id))
    return tuple(by_id.items())


def _bad_words(engine: Engine, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of words that must not appear: at the beginning of a text, and after a blank (as in vLLM)."""
    if len(words) > _MOST_BAD_WORDS or not all(words):
        raise refuse("bad_words", f"expected up to {_MOST_BAD_WORDS} words that are not empty")
    size = sum(map(len, words))
    if size > _MOST_BAD_CHARACTERS:
        raise refuse("bad_words", f"expected up to {_MOST_BAD_CHARACTERS:,} characters in all, found {size:,}")
    tokenizer = engine.loaded.tokenizer
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        plain, spaced = (
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (word.lstrip(), " " + word.lstrip())
        )
        found[plain] = None
        if spaced and plain and spaced[0] != plain[0] and len(spaced) == len(plain):
            found[spaced] = None
    return tuple(ids for ids in found if ids)
