"""The engine's OpenAI API, in vLLM's dialect: parse request bodies, format chunks and responses."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import msgspec

from actscope.engines.hf.engine import Engine
from actscope.engines.hf.request import Output, Request, Sampling
from actscope.engines.hf.text import check_ids, token_ids
from actscope.errors import RequestRefused

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class StreamingOptions(msgspec.Struct):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class _Body(msgspec.Struct, kw_only=True):
    """Fields that chat and completions share. Known but unsupported keys are rejected, unknown keys are ignored."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamingOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False
    # Keys of other servers that this engine does not support: declared, so that they are rejected instead of ignored.
    logprobs: bool | int | None = None
    logit_bias: dict[str, float] | None = None
    best_of: int | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None


class ChatBody(_Body, kw_only=True):
    """Body of a chat completion request."""

    messages: list[dict[str, object]]
    max_completion_tokens: int | None = None
    tools: list[object] | None = None
    functions: list[object] | None = None
    top_logprobs: int | None = None
    response_format: dict[str, object] | None = None
    add_generation_prompt: bool = True


class CompletionBody(_Body, kw_only=True):
    """Body of a completion request."""

    prompt: str | list[str | int | list[int]]
    echo: bool = False
    suffix: str | None = None


B = TypeVar("B", ChatBody, CompletionBody)


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence of a response, and its index in it."""

    index: int
    request: Request


@dataclass(slots=True)
class CompletionJob:
    """One HTTP request: the sequences to generate, and the format of its response."""

    kind: Literal["chat", "text"]
    id: str
    model: str
    stream: bool
    include_usage: bool
    return_token_ids: bool
    choices: list[Choice]
    created: int = field(default_factory=lambda: int(time.time()))
    _opened: set[int] = field(default_factory=set)

    def chunks(self, choice: Choice, output: Output) -> list[bytes]:
        """Return the SSE events for one output. For chat, the first event of a choice carries the role."""
        events = []
        first = choice.index not in self._opened
        self._opened.add(choice.index)
        if first and self.kind == "chat":
            opening = {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            prompt = {"prompt_token_ids": list(choice.request.prompt_ids)} if self.return_token_ids else {}
            events.append(self._event([opening], prompt))
        body: dict[str, object] = {"index": choice.index}
        body |= {"delta": {"content": output.text}} if self.kind == "chat" else {"text": output.text}
        body |= {"logprobs": None, "finish_reason": output.finish_reason}
        if self.return_token_ids:
            body["token_ids"] = output.token_ids
            if first and self.kind == "text":
                body["prompt_token_ids"] = list(choice.request.prompt_ids)
        events.append(self._event([body]))
        return events

    def usage_chunk(self, usage: dict[str, int]) -> bytes:
        """Return the server-sent event with the token counts, which has no choices."""
        return self._event([], {"usage": usage})

    def answer(self, texts: Sequence[str], ids: Sequence[Sequence[int]], reasons: Sequence[str]) -> dict[str, object]:
        """Return the complete response of a request that does not stream."""
        parts = zip(self.choices, texts, ids, reasons, strict=True)
        choices = [self._whole(choice, text, own, reason) for choice, text, own, reason in parts]
        top: dict[str, object] = {}
        if self.return_token_ids and self.kind == "chat":
            top["prompt_token_ids"] = list(self.choices[0].request.prompt_ids)
        return self._envelope(choices) | top | {"usage": self.usage(ids)}

    def usage(self, ids: Sequence[Sequence[int]]) -> dict[str, int]:
        """Return token counts. A prompt shared by several choices counts once, as with OpenAI."""
        prompt = sum(len(p) for p in {id(c.request.prompt_ids): c.request.prompt_ids for c in self.choices}.values())
        completion = sum(map(len, ids))
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _whole(self, choice: Choice, text: str, ids: Sequence[int], reason: str) -> dict[str, object]:
        body: dict[str, object] = {"index": choice.index, "logprobs": None, "finish_reason": reason}
        body |= {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"text": text}
        if self.return_token_ids:
            body["token_ids"] = list(ids)
            if self.kind == "text":
                body["prompt_token_ids"] = list(choice.request.prompt_ids)
        return body

    def _event(self, choices: Sequence[Mapping[str, object]], extra: Mapping[str, object] | None = None) -> bytes:
        return b"data: " + msgspec.json.encode({**self._envelope(choices, ".chunk"), **(extra or {})}) + b"\n\n"

    def _envelope(self, choices: Sequence[Mapping[str, object]], suffix: str = "") -> dict[str, object]:
        name = f"chat.completion{suffix}" if self.kind == "chat" else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, "choices": choices}


def chat_job(engine: Engine, raw: bytes, request_id: str | None) -> CompletionJob:
    """Parse the body of a chat request. Raises RequestRefused, which names the field, if it is invalid or unsupported."""
    body = _decode(raw, ChatBody)
    _refuse(tools=body.tools, functions=body.functions, top_logprobs=body.top_logprobs)
    if body.response_format not in (None, {"type": "text"}):
        raise RequestRefused("response_format: this engine answers plain text only", param="response_format")
    prompt = _render(engine, body)
    return _job(engine, "chat", body, [prompt], _first_given(body.max_completion_tokens, body.max_tokens), request_id)


def completion_job(engine: Engine, raw: bytes, request_id: str | None) -> CompletionJob:
    """Parse the body of a completions request, with one or more choices per prompt. Raises RequestRefused like `chat_job`."""
    body = _decode(raw, CompletionBody)
    _refuse(echo=body.echo, suffix=body.suffix)
    given = _prompts(body.prompt)
    _check_choices(engine, body, len(given))
    prompts = [_tokenize(engine, prompt) for prompt in given]
    return _job(engine, "text", body, prompts, _first_given(body.max_tokens, 16), request_id)


def _decode(raw: bytes, kind: type[B]) -> B:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        where = re.search(r"`\$\.(\w+)", str(error))
        raise RequestRefused(str(error).replace("$.", ""), param=where[1] if where else None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(f"the body is not valid JSON: {error}") from error


def _first_given(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _refuse(**unsupported: object) -> None:
    for name, value in unsupported.items():
        if value not in (None, False, [], {}, ""):
            raise RequestRefused(f"{name} is not supported by this engine; leave it out", param=name)


def _render(engine: Engine, body: ChatBody) -> list[int]:
    tokenizer = engine.loaded.tokenizer
    if not body.messages:
        raise RequestRefused("messages is empty; send at least one", param="messages")
    if tokenizer.chat_template is None:
        raise RequestRefused(f"{engine.loaded.name} has no chat template; use /v1/completions", param="messages")
    messages = [_message(i, m) for i, m in enumerate(body.messages)]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=body.add_generation_prompt)
    except Exception as error:  # a template is a program of the model's maker, and may raise anything
        raise RequestRefused(f"the model's chat template refuses these messages: {error}", param="messages") from error
    return token_ids(engine.loaded, text, add_special_tokens=False)


def _message(index: int, message: dict[str, object]) -> dict[str, Any]:
    where, role, content = f"messages[{index}]", message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise RequestRefused(f"{where}.role: expected a string, found {role!r}", param="messages")
    if isinstance(content, list):
        if any(
            not isinstance(p, dict) or p.get("type") != "text" or not isinstance(p.get("text"), str) for p in content
        ):
            raise RequestRefused(f"{where}.content: this engine reads parts of type 'text' only", param="messages")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RequestRefused(f"{where}.content: expected text, found {content!r}", param="messages")
    return {**message, "content": content}


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Normalize a text, texts, token ids or lists of token ids to a list of texts or of lists of ids."""
    items = [prompt] if isinstance(prompt, str) else prompt
    ids = [item for item in items if isinstance(item, int)]
    others = [item for item in items if not isinstance(item, int)]
    if bool(ids) == bool(others) or len(set(map(type, others))) > 1:
        raise RequestRefused(
            "prompt: expected a text, texts, token ids or lists of token ids, and not a mixture", param="prompt"
        )
    return others or [ids]


def _tokenize(engine: Engine, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return token_ids(engine.loaded, prompt)
    check_ids(engine.loaded, prompt)
    size: Any = engine.loaded.model.get_input_embeddings().num_embeddings
    wrong = next((token for token in prompt if not 0 <= token < size), None)
    if wrong is not None:
        raise RequestRefused(f"prompt: token id {wrong} is outside the vocabulary of {size}", param="prompt")
    return list(prompt)


def _job(
    engine: Engine,
    kind: Literal["chat", "text"],
    body: _Body,
    prompts: list[list[int]],
    max_tokens: int | None,
    given: str | None,
) -> CompletionJob:
    name = engine.loaded.name
    if body.model not in (None, "", name):
        raise RequestRefused(
            f"The model `{body.model}` does not exist; this engine serves `{name}`",
            param="model",
            code="model_not_found",
        )
    _refuse(
        logprobs=None if body.logprobs is False else body.logprobs,
        logit_bias=body.logit_bias,
        best_of=body.best_of if body.best_of != 1 else None,
        stop_token_ids=body.stop_token_ids,
        min_tokens=body.min_tokens,
        bad_words=body.bad_words,
        skip_special_tokens=body.skip_special_tokens is False,
    )
    n = 1 if body.n is None else body.n
    _check_choices(engine, body, len(prompts))
    job_id = _job_id(kind, given)
    choices = []
    for p, prompt in enumerate(prompts):
        engine.check(len(prompt), 1 if max_tokens is None else max_tokens)
        sampling = _sampling(
            body,
            engine.loaded.sampling_defaults,
            engine.loaded.max_context - len(prompt) if max_tokens is None else max_tokens,
        )
        for i in range(n):
            base = job_id if kind == "chat" else f"{job_id}-{p}"
            own = (
                sampling if sampling.seed is None or not i else replace(sampling, seed=(sampling.seed + i) % (1 << 63))
            )
            choices.append(Choice(p * n + i, Request(base if n == 1 else f"{i}_{base}", prompt, own)))
    usage = body.stream_options is not None and body.stream_options.include_usage
    return CompletionJob(kind, job_id, name, body.stream, usage, body.return_token_ids, choices)


def _check_choices(engine: Engine, body: _Body, n_prompts: int) -> None:
    """Raise RequestRefused if a request has no choices, or more than the engine's queue has room for."""
    most, found = engine.options.max_waiting, (1 if body.n is None else body.n) * n_prompts
    if not 1 <= found <= most:
        raise RequestRefused(f"n x prompts must lie between 1 and {most} (--max-waiting), found {found}", param="n")


def _job_id(kind: str, given: str | None) -> str:
    if given is not None and not _REQUEST_ID.fullmatch(given):
        raise RequestRefused("X-Request-Id: expected 1 to 64 letters, digits, '.', '_' or '-'", param="X-Request-Id")
    return f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{given or uuid.uuid4().hex}"


def _sampling(body: _Body, defaults: dict[str, float], max_tokens: int) -> Sampling:
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(body, name)) is not None}
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Sampling(max_tokens=max_tokens, seed=body.seed, stop=stop, ignore_eos=body.ignore_eos, **(defaults | given))
