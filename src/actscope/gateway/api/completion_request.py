"""What a completion request asks for, and the ids that its choices will have."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
from msgspec import Raw

from actscope.errors import SiteError
from actscope.serving.errors import Problem
from actscope.sites import select

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_value = msgspec.json.decode
_TRUE = Raw(b"true")
#: Of all prompts together; each is a request of its own in the engine.
_MOST_CHOICES = 1024


@dataclass(frozen=True, slots=True)
class Options:
    """None stands for what the client did not say."""

    rows: bool | str | None = None
    full_prompt: bool | None = None
    keep: str | None = None

    @property
    def given(self) -> dict[str, bool | str]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def wants_mark(self) -> bool:
        """Whether an engine that takes no such options has to be asked to keep the request."""
        return self.keep is not None or self.rows not in (None, False)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """The `actscope` field of a request, understood."""

    probes: tuple[str, ...] | None = None
    prompt: bool = True
    features: bool = False
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, slots=True)
class Call:
    """One completion request, ready to be sent to the engine."""

    path: str
    body: bytes
    """What the engine is sent: the client's own bytes, with token ids asked for and `actscope` taken out."""
    request_id: str
    """`X-Request-Id` of the upstream request."""
    response: str
    """Id of the answer."""
    choices: tuple[str, ...]
    """The engine's request id of each choice, by its index."""
    n: int
    """Choices for each prompt: choice `i` is of prompt `i // n`."""
    model: str
    stream: bool
    ask: CompletionRequest | None
    wants_token_ids: bool
    """Whether the client itself asked for token ids."""
    has_token_ids: bool
    """Whether the answer will have them."""

    @property
    def is_chat(self) -> bool:
        return self.path == CHAT


def read_call(path: str, raw: bytes, max_n: int, kind: str) -> Call:
    """Understand the body of a completion request (its types have been checked); raises Problem.

    Fields that are not the gateway's business keep their bytes. `kind` is the engine's, "" for one that says nothing of
    itself, which is sent nothing that the client has not said.
    """
    try:
        fields = _fields(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    ask = _read_ask(_take(fields, "actscope"))
    wants_token_ids = _get(fields, "return_token_ids") is True
    adds_token_ids = not wants_token_ids and bool(kind) and not _echoes(path, fields)
    if adds_token_ids:
        fields["return_token_ids"] = _TRUE
    if kind == "vllm" and ask is not None and ask.options.given:
        fields[XARGS] = into_xargs(fields, ask.options)
    n, prompts = _count(fields, max_n)
    request_id = uuid.uuid4().hex
    response = f"chatcmpl-{request_id}" if path == CHAT else f"cmpl-{request_id}"
    return Call(
        path=path,
        body=msgspec.json.encode(fields),
        request_id=request_id,
        response=response,
        choices=_choice_ids(response, n, prompts),
        n=n,
        model=str(_get(fields, "model") or ""),
        stream=_get(fields, "stream") is True,
        ask=ask,
        wants_token_ids=wants_token_ids,
        has_token_ids=wants_token_ids or adds_token_ids,
    )


def _get(fields: dict[str, Raw], name: str) -> Any:
    return _value(fields[name]) if name in fields else None


def _take(fields: dict[str, Raw], name: str) -> Any:
    raw = fields.pop(name, None)
    return None if raw is None else _value(raw)


def _echoes(path: str, fields: dict[str, Raw]) -> bool:
    """Whether the prompt's text is to be in the answer: vLLM leaves it out when token ids are asked for too."""
    return path == COMPLETIONS and bool(_get(fields, "echo"))


def _read_ask(field: Any) -> CompletionRequest | None:
    if field is None or field is False:
        return None
    if field is True:
        return CompletionRequest()
    probes = field.get("probes")
    options = Options(field.get("rows"), field.get("full_prompt"), field.get("keep"))
    return CompletionRequest(
        None if probes is None else tuple(dict.fromkeys(probes)),
        field.get("prompt") is not False,
        field.get("features") is True,
        options,
    )


def _count(fields: dict[str, Raw], max_n: int) -> tuple[int, int]:
    """Choices for each prompt, and prompts (0 for a chat)."""
    n = _get(fields, "n") or 1
    prompts = 0 if "messages" in fields else _prompts(_get(fields, "prompt")) + _embedded(_get(fields, "prompt_embeds"))
    if n > max_n:
        raise Problem(400, f"n: at most {max_n} choices of one prompt, found {n}", param="n", code="invalid_value")
    if n * prompts > _MOST_CHOICES:
        message = f"prompt: at most {_MOST_CHOICES} choices in one request, found {n * prompts}"
        raise Problem(400, message, param="prompt", code="invalid_value")
    return n, prompts


def _prompts(prompt: object) -> int:
    if prompt is None:
        return 0
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def _embedded(embeds: object) -> int:
    """vLLM's `prompt_embeds`: prompts as tensors, one or several."""
    return len(embeds) if isinstance(embeds, list) else 0 if embeds is None else 1


def _choice_ids(response: str, n: int, prompts: int) -> tuple[str, ...]:
    """vLLM's names: the response's id, `-<prompt>` for a plain completion, `<choice>_` before it when n > 1."""
    stems = [f"{response}-{j}" for j in range(prompts)] or [response]
    return tuple(stem if n == 1 else f"{i}_{stem}" for stem in stems for i in range(n))


#: Where vLLM takes a request's options for the plugin; the values there are text.
XARGS = "vllm_xargs"
_KEY = "actscope"


def check_sites(options: Options, n_layers: int) -> None:
    """Raise a 400 when `rows` selects sites that the model does not have, or in a way that cannot be read."""
    if isinstance(options.rows, str):
        try:
            select(options.rows, n_layers)
        except SiteError as error:
            raise _refusal("rows", str(error)) from error


def mark_body(options: Options, wait_seconds: float) -> bytes:
    """The mark that stands for the options at an engine that records whole requests; 400 for a choice of sites."""
    if isinstance(options.rows, str):
        message = "this engine keeps the sites that it was started with: send true, or leave it out"
        raise _refusal("rows", message, "not_supported")
    return msgspec.json.encode({"why": options.keep or "asked for by the request", "wait": wait_seconds})


def into_xargs(fields: dict[str, msgspec.Raw], options: Options) -> msgspec.Raw:
    """The request's `vllm_xargs` with the options in it, beside what the client has put there itself."""
    raw = fields.get(XARGS)
    xargs = msgspec.json.decode(raw) if raw is not None else None
    if xargs is not None and not isinstance(xargs, dict):
        raise Problem(400, f"{XARGS}: expected an object", param=XARGS, code="invalid_value")
    own = _decoded((xargs or {}).get(_KEY))
    merged = msgspec.json.encode({**own, **options.given}).decode()
    return msgspec.Raw(msgspec.json.encode({**(xargs or {}), _KEY: merged}))


def _decoded(text: object) -> dict[str, object]:
    if text is None:
        return {}
    param = f"{XARGS}.{_KEY}"
    try:
        found = msgspec.json.decode(text if isinstance(text, str) else b"")
    except msgspec.DecodeError as error:
        raise Problem(400, f"{param}: expected the text of a JSON object", param=param, code="invalid_value") from error
    if not isinstance(found, dict):
        raise Problem(400, f"{param}: expected the text of a JSON object", param=param, code="invalid_value")
    return found


def _refusal(name: str, message: str, code: str = "invalid_value") -> Problem:
    return Problem(400, f"actscope.{name}: {message}", param=f"actscope.{name}", code=code)
