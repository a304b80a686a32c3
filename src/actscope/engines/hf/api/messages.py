"""The Messages API (Anthropic's) for text, as vLLM serves it: requests, and their answers, whole or as events."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from actscope.engines.hf.api.answers import Choice
from actscope.engines.hf.api.fields import (
    ChatBody,
    MessagesBody,
    check_keys,
    decode_body,
    effort_of,
    means_nothing,
    refuse,
)
from actscope.engines.hf.api.jobs import check_model, fitting, job_id, sampling_of
from actscope.engines.hf.api.message_keys import refuse_unknown
from actscope.engines.hf.api.prompts import content_text, render_chat
from actscope.engines.hf.engine import Engine
from actscope.engines.hf.loading import LoadedModel
from actscope.engines.hf.request import Output, Request
from actscope.errors import RequestRefused

_TOOLS = "not supported: this engine does not parse tool calls; vLLM does. Leave it out."
#: Keys of the blocks that the prompt contains. A block of another type is refused as a whole.
_BLOCK_KEYS = {
    "text": ("text",),
    "tool_use": ("id", "input", "name", "caller"),
    "tool_result": ("content", "tool_use_id"),
}
#: What `output_config.effort` may be.
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def message_job(engine: Engine, raw: bytes, request_id: str | None) -> MessageJob:
    """Parse the body of a request. Raises RequestRefused, which names the field, if it is invalid or unsupported."""
    body = decode_body(raw, MessagesBody)
    check_model(engine, body.model)
    _check(body)
    body.stop = body.stop_sequences or body.stop
    asked = _as_chat(body)
    if (body.thinking or {}).get("type") == "disabled":
        asked.reasoning_effort = _without_thinking(engine.loaded)
    chat = render_chat(engine.loaded, asked)
    ids, room = fitting(engine, chat.prompt.ids, body.max_tokens, None, None)
    name = job_id("chat", request_id or uuid.uuid4().hex)
    choice = Choice(0, Request(name, ids, sampling_of(engine, body, room)))
    return MessageJob(name, engine.loaded.name, [choice], bool(body.stream))


def _check(body: MessagesBody) -> None:
    choice = check_keys("tool_choice", body.tool_choice, ("disable_parallel_tool_use", "name", "type"))
    if body.tools and choice.get("type") != "none":
        raise refuse("tools", _TOOLS)
    if not means_nothing(choice.get("type"), ("none", "auto")):
        raise refuse("tool_choice", _TOOLS)
    thinking = body.thinking or {}
    if not means_nothing(thinking.get("type"), ("disabled", "adaptive")):
        raise refuse("thinking", "not supported: this engine does not limit reasoning. Leave it out.")
    check_keys("thinking", thinking, ("display", "type"))
    output = check_keys("output_config", body.output_config, ("effort", "format"))
    if not means_nothing(output.get("format")):
        raise refuse("output_config", "format: this engine does not constrain answers; vLLM does. Leave it out.")
    if body.messages and body.messages[-1].get("role") == "assistant":
        raise refuse(
            "messages",
            "the last one is the assistant's, which this engine does not continue here: use /v1/chat/completions with "
            "continue_final_message true and add_generation_prompt false",
        )


def _as_chat(body: MessagesBody) -> ChatBody:
    """Return the conversation as a chat."""
    messages: list[dict[str, object]] = []
    if body.system:
        messages.append({"role": "system", "content": content_text("system", body.system)})
    for i, message in enumerate(body.messages):
        messages += _plain(f"messages[{i}]", message)
    effort = effort_of("output_config", body.output_config or {})
    return ChatBody(
        messages=messages,
        tools=[_tool(f"tools[{i}]", tool) for i, tool in enumerate(body.tools or ())],
        chat_template_kwargs=body.chat_template_kwargs,
        reasoning_effort=effort,
    )


def _without_thinking(loaded: LoadedModel) -> str:
    """Return the effort that stands for no thinking, as in vLLM: "none", or "low" where the template does not know that.

    A template does not know it if it refuses it, or writes the same prompt for another effort.
    """
    prompts: list[str] = []
    for effort in ("none", *_EFFORTS):
        try:
            chat = render_chat(loaded, ChatBody(messages=[{"role": "user", "content": "Hi"}], reasoning_effort=effort))
        except RequestRefused:
            if effort == "none":
                return "low"
            continue
        prompts.append(chat.prompt.text)
    return "low" if prompts[0] in prompts[1:] else "none"


def _tool(where: str, tool: dict[str, object]) -> dict[str, object]:
    """Return a tool in the form of chat completions, which templates expect. It may not be called (see `_check`)."""
    if not isinstance(tool.get("name"), str) or not isinstance(tool.get("input_schema"), dict):
        raise RequestRefused(
            f"{where}: expected name and input_schema, found {sorted(tool)!r:.200}: this engine runs no tools of its own",
            param="tools",
        )
    known = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
    refuse_unknown(where, tool, known)
    function = {ours: tool[theirs] for theirs, ours in known.items() if tool.get(theirs) is not None}
    return {"type": "function", "function": function}


def _plain(where: str, message: dict[str, object]) -> list[dict[str, object]]:
    """Return a message in the form of chat completions: results of tools first, then its text with its calls."""
    content, role = message.get("content"), message.get("role")
    refuse_unknown(where, message, ("content", "role"))
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    blocks = [block for block in content if isinstance(block, dict)]
    for block in blocks:
        refuse_unknown(f"{where}.content", block, _BLOCK_KEYS.get(str(block.get("type")), block.keys()))
    results = [block for block in blocks if block.get("type") == "tool_result"]
    calls = [block for block in blocks if block.get("type") == "tool_use"]
    texts = [part for part in content if part not in results and part not in calls]
    found: list[dict[str, object]] = [
        {"role": "tool", "tool_call_id": r.get("tool_use_id"), "content": content_text(where, r.get("content"))}
        for r in results
    ]
    if texts or calls:
        found.append({"role": role, "content": content_text(where, texts), "tool_calls": list(map(_call, calls))})
    if not found:
        raise RequestRefused(f"{where}.content: expected text, found an empty list", param="messages")
    return found


def _call(block: Mapping[str, object]) -> dict[str, object]:
    function = {"name": block.get("name"), "arguments": block.get("input")}
    return {"id": block.get("id"), "type": "function", "function": function}


@dataclass(slots=True)
class MessageJob:
    """One request of the Messages API: its sequence, and the events and the object of its answer."""

    id: str
    model: str
    choices: list[Choice]
    stream: bool

    def begin(self) -> list[bytes]:
        """Return the events before the first output."""
        message = self._object([], None, None)
        return [
            _event("message_start", message=message),
            _event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        ]

    def take(self, choice: Choice, output: Output) -> list[bytes]:
        """Append one output. Returns the event with its text, if the answer is a stream."""
        choice.add(output)
        if not self.stream or not output.text:
            return []
        return [_event("content_block_delta", index=0, delta={"type": "text_delta", "text": output.text})]

    def end(self) -> list[bytes]:
        """Return the last events of a stream."""
        reason, sequence = self._reason
        return [
            _event("content_block_stop", index=0),
            _event("message_delta", delta={"stop_reason": reason, "stop_sequence": sequence}, usage=self._usage()),
            _event("message_stop"),
        ]

    def failure(self, error: Mapping[str, object]) -> bytes:
        """Return the event with which a stream ends after a failure."""
        return _event("error", error=error["error"])

    def answer(self) -> dict[str, object]:
        """Return the complete message."""
        return self._object([{"type": "text", "text": self.choices[0].text}], *self._reason)

    @property
    def _reason(self) -> tuple[str | None, str | None]:
        """`stop_reason` and `stop_sequence`."""
        choice = self.choices[0]
        if isinstance(choice.stop_reason, str):
            return "stop_sequence", choice.stop_reason
        return _REASONS.get(choice.finish_reason), None

    def _object(self, content: list[object], reason: str | None, sequence: str | None) -> dict[str, object]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.model,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, int]:
        choice = self.choices[0]
        return {"input_tokens": len(choice.request.prompt_ids), "output_tokens": len(choice.token_ids)}


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))
