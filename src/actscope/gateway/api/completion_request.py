"""Parsing of completion requests: their `actscope` options, the body for the engine, and the ids of their choices."""

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
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_TRUE = Raw(b"true")


@dataclass(frozen=True, slots=True)
class Options:
    """Options for the engine. None means that the client did not set the option.

    Attributes:
        rows: Whether rows are sent to the recording, or the sites to send, such as "0,7,15".
        full_prompt: Whether the whole prompt is computed even if it is cached.
        keep: Reason to keep the request in the recording.
    """

    rows: bool | str | None = None
    full_prompt: bool | None = None
    keep: str | None = None

    @property
    def given(self) -> dict[str, bool | str]:
        """Return the options that the client set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def wants_mark(self) -> bool:
        """Return whether an engine without such options must be sent a mark for the request."""
        return self.keep is not None or self.rows not in (None, False)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """The parsed `actscope` field of a completion request.

    Attributes:
        probes: Ids of the probes to send, without duplicates; None for all.
        prompt: Whether the tokens and scores of the prompt are sent.
        features: Whether features are sent.
        options: Options for the engine.
    """

    probes: tuple[str, ...] | None = None
    prompt: bool = True
    features: bool = False
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, slots=True)
class Call:
    """One completion request, ready to be sent to the engine."""

    path: str
    body: bytes
    """Body for the engine: the client's fields as bytes, without `actscope`. `return_token_ids` and, for vLLM, the options in
    `vllm_xargs` are added if needed."""
    request_id: str
    """`X-Request-Id` of the upstream request."""
    response: str
    """Id of the answer, from which the ids of its choices are derived."""
    choices: tuple[str, ...]
    """The engine's request id of each choice, by index."""
    n: int
    """Number of choices for each prompt. Choice `i` belongs to prompt `i // n`."""
    model: str
    stream: bool
    ask: CompletionRequest | None
    wants_token_ids: bool
    """Whether the client requested token ids."""
    has_token_ids: bool
    """Whether the engine's answer is expected to have token ids."""

    @property
    def is_chat(self) -> bool:
        """Return whether this is a chat completion."""
        return self.path == CHAT


def read_call(path: str, raw: bytes, max_n: int, kind: str) -> Call:
    """Parse the body of a completion request.

    Args:
        path: `CHAT` or `COMPLETIONS`.
        raw: Body as JSON. Its types have been validated already.
        max_n: Maximum number of choices, for one prompt and of all prompts together.
        kind: Kind of the engine. "" if it has no card; such an engine is sent no fields that the client did not send.

    Returns:
        The call. Fields that the gateway does not use keep their bytes.

    Raises:
        Problem: 400 if the body is not valid JSON or has too many choices.
    """
    try:
        fields = _fields(raw)
    except _MALFORMED as error:
        raise _not_json(error) from error
    ask = read_ask(_take(fields, "actscope"))
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


def _value(raw: Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except _MALFORMED as error:
        raise _not_json(error) from error


def _not_json(error: Exception) -> Problem:
    return Problem(400, f"the body is not valid JSON: {error}", code="invalid_json")


def _get(fields: dict[str, Raw], name: str) -> Any:
    return _value(fields[name]) if name in fields else None


def _take(fields: dict[str, Raw], name: str) -> Any:
    raw = fields.pop(name, None)
    return None if raw is None else _value(raw)


def _echoes(path: str, fields: dict[str, Raw]) -> bool:
    """Return whether the answer is to contain the prompt's text. vLLM omits it if token ids are requested as well."""
    return path == COMPLETIONS and bool(_get(fields, "echo"))


def read_ask(field: Any) -> CompletionRequest | None:
    """Return the parsed `actscope` field, whose types have been validated; None if it requests nothing."""
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
    """Return the number of choices for each prompt, and of prompts (0 for a chat). Raises Problem above the limits."""
    n = _get(fields, "n") or 1
    prompts = 0 if "messages" in fields else _prompts(_get(fields, "prompt")) + _embedded(_get(fields, "prompt_embeds"))
    if n > max_n:
        raise Problem(400, f"n: at most {max_n} choices of one prompt, found {n}", param="n", code="invalid_value")
    if n * prompts > max_n:  # each choice is a request of its own in the engine
        message = f"prompt: at most {max_n} choices in one request, found {n * prompts}"
        raise Problem(400, message, param="prompt", code="invalid_value")
    return n, prompts


def _prompts(prompt: object) -> int:
    if prompt is None:
        return 0
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def _embedded(embeds: object) -> int:
    """Return the number of prompts in vLLM's `prompt_embeds` (prompts as tensors, one or several)."""
    return len(embeds) if isinstance(embeds, list) else 0 if embeds is None else 1


def _choice_ids(response: str, n: int, prompts: int) -> tuple[str, ...]:
    """Return the request ids that vLLM uses.

    Each is the response's id, with `-<prompt>` after it for a text completion, and `<choice>_` before it if n > 1.
    """
    stems = [f"{response}-{j}" for j in range(prompts)] or [response]
    return tuple(stem if n == 1 else f"{i}_{stem}" for stem in stems for i in range(n))


#: Field in which vLLM takes a request's options for the plugin. Its values are text.
XARGS = "vllm_xargs"
_KEY = "actscope"


def check_sites(options: Options, n_layers: int) -> None:
    """Raise Problem (400) if `rows` is not a valid selection of the model's sites."""
    if isinstance(options.rows, str):
        try:
            select(options.rows, n_layers)
        except SiteError as error:
            raise _refusal("rows", str(error)) from error


def mark_body(options: Options, wait_seconds: float) -> bytes:
    """Return the body of the mark that replaces the options for engines that record whole requests.

    Args:
        options: Options of the request.
        wait_seconds: Time in seconds that the engine waits for the request to begin.

    Raises:
        Problem: 400 if the options select sites.
    """
    if isinstance(options.rows, str):
        message = "this engine records the sites that it was started with: send true, or omit the field"
        raise _refusal("rows", message, "not_supported")
    return msgspec.json.encode({"why": options.keep or "requested by the client", "wait": wait_seconds})


def into_xargs(fields: dict[str, msgspec.Raw], options: Options) -> msgspec.Raw:
    """Return the request's `vllm_xargs` with the options merged in. They override equal keys of the client's own entry.

    Raises:
        Problem: 400 if the client's `vllm_xargs` is not an object, or its `actscope` entry is not a JSON object as text.
    """
    raw = fields.get(XARGS)
    xargs = _value(raw) if raw is not None else None
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
    except _MALFORMED as error:
        raise Problem(400, f"{param}: expected a JSON object as text", param=param, code="invalid_value") from error
    if not isinstance(found, dict):
        raise Problem(400, f"{param}: expected a JSON object as text", param=param, code="invalid_value")
    return found


def _refusal(name: str, message: str, code: str = "invalid_value") -> Problem:
    return Problem(400, f"actscope.{name}: {message}", param=f"actscope.{name}", code=code)
