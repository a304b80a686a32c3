"""The Responses API for text: requests that carry their whole conversation, and their answers, whole or as events."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from actscope.engines.hf.api.answers import Choice
from actscope.engines.hf.api.fields import (
    ChatBody,
    ResponsesBody,
    check_keys,
    decode_body,
    effort_of,
    means_nothing,
    refuse,
)
from actscope.engines.hf.api.jobs import check_model, check_tools, fitting, sampling_of
from actscope.engines.hf.api.logprobs import LogprobFormat
from actscope.engines.hf.api.message_keys import refuse_unknown
from actscope.engines.hf.api.prompts import content_text, render_chat
from actscope.engines.hf.engine import Engine
from actscope.engines.hf.request import Output, Request, Sampling, TokenLogprobs
from actscope.errors import RequestRefused

_RESPONSE_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_LOGPROBS = "message.output_text.logprobs"
#: Values of `include` for items that this engine does not produce.
_NEVER_THERE = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
_MOST_LOGPROBS = 20
#: Keys of the items that the prompt contains. An item of another type is refused as a whole.
_ITEM_KEYS = {
    "message": ("content", "role"),
    "function_call": ("arguments", "async", "call_id", "caller", "name", "namespace"),
    "function_call_output": ("call_id", "caller", "name", "namespace", "output"),
}


def response_job(engine: Engine, raw: bytes, request_id: str | None) -> ResponseJob:
    """Parse the body of a request. Raises RequestRefused, which names the field, if it is invalid or unsupported.

    The id of the response is `request_id` in the body, which the gateway sets, and not the header.
    """
    body = decode_body(raw, ResponsesBody)
    check_model(engine, body.model)
    check_tools(body.tools, body.tool_choice)
    _check_text(body.text or {})
    _check_reasoning(body.reasoning or {})
    logprobs = _n_logprobs(body)
    chat = render_chat(engine.loaded, _as_chat(body))
    keep = {None: None, "disabled": None, "auto": -1}
    if body.truncation not in keep:
        raise refuse("truncation", f"expected auto or disabled, found {body.truncation:.100}")
    ids, room = fitting(engine, chat.prompt.ids, body.max_output_tokens, keep[body.truncation], None)
    response = body.request_id or f"resp_{uuid.uuid4().hex}"
    if not _RESPONSE_ID.fullmatch(response):
        raise refuse("request_id", "expected 1 to 100 letters, digits, '.', '_' or '-'")
    sampling = replace(sampling_of(engine, body, room), logprobs=logprobs)
    choice = Choice(0, Request(f"{response}_0", ids, sampling))
    form = LogprobFormat(engine.loaded.tokenizer._tokenizer)
    return ResponseJob(response, engine.loaded.name, [choice], body, form)


def _check_text(text: dict[str, object]) -> None:
    check_keys("text", text, ("format", "verbosity"))
    form = text.get("format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise refuse("text", "format: this engine does not constrain answers to a format; vLLM does. Leave it out.")
    if not means_nothing(text.get("verbosity"), ("medium",)):
        raise refuse("text", "verbosity: this engine has no such hint: say it in a message. Leave it out.")


def _check_reasoning(reasoning: dict[str, object]) -> None:
    """Refuse what would change the answer. Summaries are of reasoning, which this engine does not take out of its answers."""
    check_keys("reasoning", reasoning, ("context", "effort", "generate_summary", "summary"))
    if not means_nothing(reasoning.get("context"), ("auto",)):
        raise refuse("reasoning", "context: this engine gives the model what `input` has. Leave it out.")


def _n_logprobs(body: ResponsesBody) -> int | None:
    """Return the number of alternatives of each token; None if no log-probabilities are wanted."""
    unknown = [name for name in body.include or () if name not in (_LOGPROBS, *_NEVER_THERE)]
    if unknown:
        raise refuse("include", f"{unknown[0]:.100} is not supported: leave it out")
    top = body.top_logprobs or 0
    if not 0 <= top <= _MOST_LOGPROBS:
        raise refuse("top_logprobs", f"expected 0 to {_MOST_LOGPROBS}, found {top}")
    if _LOGPROBS in (body.include or ()):
        return top
    if top:
        raise refuse("top_logprobs", f"needs {_LOGPROBS} in `include`")
    return None


def _as_chat(body: ResponsesBody) -> ChatBody:
    """Return the conversation as a chat."""
    messages: list[dict[str, object]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    said = body.input
    items: list[dict[str, object]] = [{"role": "user", "content": said}] if isinstance(said, str) else said
    for i, item in enumerate(items):
        _add_item(messages, f"input[{i}]", item)
    last = items[-1] if items else {}
    unfinished = last.get("role") == "assistant" and last.get("status") in ("in_progress", "incomplete")
    effort = effort_of("reasoning", body.reasoning or {})
    return ChatBody(
        messages=messages,
        continue_final_message=unfinished,
        tools=[_tool(tool) for tool in body.tools or ()],
        chat_template_kwargs=body.chat_template_kwargs,
        reasoning_effort=effort,
        truncate_prompt_tokens=-1 if body.truncation == "auto" else None,
    )


def _add_item(messages: list[dict[str, object]], where: str, item: dict[str, object]) -> None:
    """Append an item of the conversation: a message, or a call with its output. A call belongs to the message before it."""
    kind = item.get("type") or "message"
    refuse_unknown(where, item, _ITEM_KEYS.get(str(kind), item.keys()))
    if kind == "message":
        messages.append({"role": item.get("role"), "content": content_text(where, item.get("content"))})
    elif kind == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        calls = messages[-1].setdefault("tool_calls", [])
        assert isinstance(calls, list)
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        calls.append({"id": item.get("call_id"), "type": "function", "function": function})
    elif kind == "function_call_output":
        output = content_text(where, item.get("output"))
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    else:
        raise RequestRefused(
            f"{where}.type: this engine reads messages and calls of functions, not {kind!r:.100}", param="input"
        )


def _tool(tool: dict[str, object]) -> dict[str, object]:
    """Return a function in the form of chat completions, which templates expect."""
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


@dataclass(slots=True)
class ResponseJob:
    """One request of the Responses API: its sequence, and the events and the object of its answer."""

    id: str
    model: str
    choices: list[Choice]
    body: ResponsesBody
    logprobs: LogprobFormat
    created: int = field(default_factory=lambda: int(time.time()))
    item: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _n_events: int = 0
    _pending: list[TokenLogprobs] = field(default_factory=list)

    @property
    def stream(self) -> bool:
        """Return whether the answer is a stream."""
        return bool(self.body.stream)

    @property
    def _sampling(self) -> Sampling:
        return self.choices[0].request.sampling

    def begin(self) -> list[bytes]:
        """Return the events before the first output."""
        response = self._object("in_progress", [])
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=self._item("in_progress", [])),
            self._part_event("response.content_part.added", part=part),
        ]

    def take(self, choice: Choice, output: Output) -> list[bytes]:
        """Append one output. Returns the event with its text, if the answer is a stream."""
        choice.add(output)
        self._pending += output.logprobs
        if not self.stream or not output.text:
            return []
        logprobs, self._pending = self.logprobs.output_text(self._pending), []
        return [self._part_event("response.output_text.delta", delta=output.text, logprobs=logprobs)]

    def end(self) -> list[bytes]:
        """Return the last events of a stream."""
        answer = self.answer()
        item = self._item(self._item_status, [self._part])
        text, logprobs = self._part["text"], self._part["logprobs"]
        last = "response.completed" if answer["status"] == "completed" else "response.incomplete"
        return [
            self._part_event("response.output_text.done", text=text, logprobs=logprobs),
            self._part_event("response.content_part.done", part=self._part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(last, response=answer),
        ]

    def failure(self, error: Mapping[str, object]) -> bytes:
        """Return the event with which a stream ends after a failure."""
        facts = error["error"]
        assert isinstance(facts, Mapping)
        return self._event("error", message=facts["message"], code="engine_failed", param=None, error=facts)

    def answer(self) -> dict[str, object]:
        """Return the complete response."""
        status = {"stop": "completed", "length": "incomplete"}.get(self.choices[0].finish_reason, "cancelled")
        return self._object(status, [self._item(self._item_status, [self._part])])

    @property
    def _item_status(self) -> str:
        return "completed" if self.choices[0].finish_reason == "stop" else "incomplete"

    @property
    def _part(self) -> dict[str, object]:
        choice = self.choices[0]
        logprobs = self.logprobs.output_text(choice.logprobs)
        return {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": logprobs}

    def _item(self, status: str, content: Sequence[object]) -> dict[str, object]:
        return {"type": "message", "id": self.item, "status": status, "role": "assistant", "content": content}

    def _part_event(self, kind: str, **fields: object) -> bytes:
        return self._event(kind, item_id=self.item, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._n_events, **fields})
        self._n_events += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)

    def _object(self, status: str, output: Sequence[object]) -> dict[str, object]:
        body, sampling = self.body, self._sampling
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": reason,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": body.reasoning,
            "service_tier": body.service_tier or "auto",
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            "user": body.user,
        }

    def _usage(self) -> dict[str, object]:
        n_prompt, n = len(self.choices[0].request.prompt_ids), len(self.choices[0].token_ids)
        return {
            "input_tokens": n_prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": n,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": n_prompt + n,
        }
