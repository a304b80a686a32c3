"""Prompts of completion requests as token ids: chats by the model's template, texts by its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from actscope.engines.hf.api.fields import ChatBody, CompletionBody, refuse
from actscope.engines.hf.api.message_keys import TemplateKeys
from actscope.engines.hf.api.tokenizing import check_ids, token_ids
from actscope.engines.hf.loading import LoadedModel
from actscope.errors import RequestRefused

#: Arguments of `apply_chat_template` that `chat_template_kwargs` must not set.
_RESERVED = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
        "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs",
        "tools", "truncation",
    }
)  # fmt: skip
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as tokens, and its text as far as the answer needs it."""

    ids: list[int]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A rendered chat.

    Attributes:
        prompt: The prompt.
        role: Role of the answer.
        last: Text of the last message if it has that role: what `echo` puts before the answer.
    """

    prompt: PromptTokens
    role: str
    last: str


def vocabulary_of(loaded: LoadedModel) -> int:
    """Return the number of token ids of the model's embedding."""
    return int(loaded.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]


def render_chat(loaded: LoadedModel, body: ChatBody) -> Chat:
    """Render the messages of a chat by the model's template, and tokenize the text.

    Raises:
        RequestRefused: The model has no template, the template refuses the messages, or a message is malformed.
    """
    tokenizer = loaded.tokenizer
    if not body.messages:
        raise refuse("messages", "expected at least one message, found none")
    if tokenizer.chat_template is None:
        raise refuse("messages", f"{loaded.name} has no chat template; use /v1/completions")
    begins = not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
    if begins and body.continue_final_message:
        raise refuse("continue_final_message", "cannot be true together with add_generation_prompt: send one of them")
    template = TemplateKeys(str(tokenizer.chat_template))
    messages = [_message(i, m, template) for i, m in enumerate(body.messages)]
    variables, shortens = _variables(body), body.truncate_prompt_tokens is not None
    render: Any = tokenizer.apply_chat_template  # its types do not know the forms that templates read
    try:
        text = str(
            render(
                messages,
                tools=body.tools or None,
                documents=body.documents or None,
                tokenize=False,
                add_generation_prompt=begins,
                continue_final_message=bool(body.continue_final_message),
                **variables,
            )
        )
    except Exception as error:  # a template is a program of the model's maker, and may raise anything
        raise RequestRefused(f"the model's chat template refuses these messages: {error}", param="messages") from error
    ids = token_ids(loaded, text, shortened=shortens, add_special_tokens=bool(body.add_special_tokens))
    role = "assistant" if begins else str(messages[-1]["role"])
    last = str(messages[-1]["content"]) if messages[-1]["role"] == role else ""
    return Chat(PromptTokens(ids, text), role, last)


def _variables(body: ChatBody) -> dict[str, object]:
    """Return the variables for the template. Fields of the request take precedence, as in vLLM.

    As there, `reasoning_effort` also sets `enable_thinking`, which is what many templates read, unless the client has said it.
    """
    given = body.chat_template_kwargs or {}
    reserved = sorted(_RESERVED & given.keys())
    if reserved:
        raise refuse(
            "chat_template_kwargs", f"{reserved[0]} is no variable of a template: if it is a field, send it as one"
        )
    if body.reasoning_effort is None:
        return given
    thinking = {"enable_thinking": body.reasoning_effort != "none"}
    return thinking | given | {"reasoning_effort": body.reasoning_effort}


def _message(index: int, message: dict[str, object], template: TemplateKeys) -> dict[str, object]:
    """Return a message for the template: text content, and calls with decoded arguments.

    A template that does not write tool calls would hide them from the model: they are then appended to the content.
    """
    where = f"messages[{index}]"
    message = _with_reasoning(message, template)
    template.check(where, message)
    content = content_text(where, message.get("content"))
    found: dict[str, object] = {**message, "content": content}
    calls = message.get("tool_calls")
    if calls is None or calls == []:
        found.pop("tool_calls", None)
        return found
    found["tool_calls"] = decoded = _calls(where, calls)
    if not template.reads("tool_calls"):
        lines = [msgspec.json.encode(call["function"]).decode() for call in decoded]
        found["content"] = "\n".join(filter(None, [content, *lines]))
    return found


def _with_reasoning(message: dict[str, object], template: TemplateKeys) -> dict[str, object]:
    """Return a message whose reasoning has the key that the template reads: `reasoning` or `reasoning_content`, as in vLLM."""
    for given, read in (("reasoning", "reasoning_content"), ("reasoning_content", "reasoning")):
        if message.get(given) and not message.get(read) and template.reads(read) and not template.reads(given):
            message = {name: value for name, value in message.items() if name != given} | {read: message[given]}
    return message


def content_text(where: str, content: object) -> str:
    """Return the text of a message's content: a text, parts of text, or null for none. Raises RequestRefused otherwise."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestRefused(f"{where}.content: expected text, found {content!r:.100}", param=where.partition("[")[0])
    return "\n".join(_part(where, part) for part in content)


def _part(where: str, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(_TEXT_PARTS.get(str(kind), "")) if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        message = f"{where}.content: this engine reads parts of type 'text' only, found {kind!r:.100}"
        raise RequestRefused(message, param=where.partition("[")[0])
    return text


def _calls(where: str, calls: object) -> list[dict[str, object]]:
    """Return tool calls with their arguments as objects, which is what templates expect."""
    if not isinstance(calls, list):
        raise RequestRefused(f"{where}.tool_calls: expected a list, found {calls!r:.100}", param="messages")
    return [_call(where, call) for call in calls]


def _call(where: str, call: object) -> dict[str, object]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or call.get("type", "function") != "function":
        raise RequestRefused(f"{where}.tool_calls: expected calls of type 'function'", param="messages")
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(given: object) -> dict[str, object]:
    """Return the arguments of a call. Malformed ones, which the model wrote itself, become none: the chat can go on."""
    try:
        found = msgspec.json.decode(given) if isinstance(given, str) and given else given
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        found = None
    return found if isinstance(found, dict) else {}


def text_prompts(loaded: LoadedModel, body: CompletionBody, most: int) -> list[PromptTokens]:
    """Return the prompts of a completions request: a text, texts, token ids or lists of token ids.

    Raises:
        RequestRefused: There is none, or more than `most` choices of all of them; they are mixed, cannot fit the context, or a
            token id is outside the vocabulary.
    """
    given = _separate(body.prompt)
    n = 1 if body.n is None else body.n
    if not 1 <= n * len(given) <= most:
        raise refuse("n", f"n x prompts must lie between 1 and {most} (--max-waiting), found {n * len(given)}")
    prompts = [_tokenized(loaded, prompt, body) for prompt in given]
    if not body.echo:
        return prompts
    return [prompt if prompt.text else PromptTokens(prompt.ids, _decoded(loaded, prompt.ids)) for prompt in prompts]


def _separate(prompt: str | list[str | int | list[int]] | None) -> list[str | list[int]]:
    items = [prompt] if isinstance(prompt, str) else prompt or []
    ids = [item for item in items if isinstance(item, int)]
    others = [item for item in items if not isinstance(item, int)]
    if bool(ids) == bool(others) or len(set(map(type, others))) > 1:
        raise refuse("prompt", "expected a text, texts, token ids or lists of token ids, and not a mixture")
    return others or [ids]


def _tokenized(loaded: LoadedModel, prompt: str | list[int], body: CompletionBody) -> PromptTokens:
    shortens = body.truncate_prompt_tokens is not None
    if isinstance(prompt, str):
        special = body.add_special_tokens is not False
        ids = token_ids(loaded, prompt, shortened=shortens, add_special_tokens=special)
        return PromptTokens(ids, prompt)
    if not shortens:
        check_ids(loaded, prompt)
    size = vocabulary_of(loaded)
    wrong = next((token for token in prompt if not 0 <= token < size), None)
    if wrong is not None:
        raise refuse("prompt", f"token id {wrong} is outside the vocabulary of {size}")
    return PromptTokens(list(prompt))


def _decoded(loaded: LoadedModel, ids: Sequence[int]) -> str:
    return str(loaded.tokenizer._tokenizer.decode(list(ids), skip_special_tokens=False))


def truncated(ids: list[int], tokens: int | None, side: str | None, room: int) -> list[int]:
    """Return a prompt shortened to a number of tokens.

    Args:
        ids: The prompt.
        tokens: `truncate_prompt_tokens` of the request: the number of tokens to keep, -1 for `room`; None keeps all.
        side: `truncation_side`: "left" (default) keeps the last tokens, "right" the first ones.
        room: Number of tokens that fit the context beside the answer.

    Raises:
        RequestRefused: A value is out of range.
    """
    if side not in (None, "left", "right"):
        raise refuse("truncation_side", f"expected left or right, found {side!r:.100}")
    if tokens is None:
        return ids
    if tokens != -1 and not 1 <= tokens <= room:
        raise refuse("truncate_prompt_tokens", f"expected -1, or 1 to {room}, found {tokens}")
    keep = max(room if tokens == -1 else tokens, 1)
    return ids[:keep] if side == "right" else ids[-keep:]
