"""Answers of chat and text completions: chunks of a stream, and whole objects."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from actscope.engines.hf.api.logprobs import LogprobFormat
from actscope.engines.hf.request import Output, Request, TokenLogprobs


@dataclass(slots=True)
class Choice:
    """One sequence of a response: its index, its request, and what it has produced.

    Attributes:
        index: Index in the response.
        request: Request to the engine.
        before: Text that the answer begins with (`echo`).
        text: Text produced.
        token_ids: Tokens produced.
        logprobs: Log-probabilities of these tokens.
        prompt_logprobs: Log-probabilities of the prompt's tokens.
        finish_reason: Reason of the end.
        stop_reason: The stop string or token that ended it.
    """

    index: int
    request: Request
    before: str = ""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str = "stop"
    stop_reason: str | int | None = None
    opened: bool = False
    text_offset: int = 0

    def add(self, output: Output) -> None:
        """Append one output."""
        self.text += output.text
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.finish_reason = output.finish_reason or "stop"
        self.stop_reason = output.stop_reason


class Job(Protocol):
    """One HTTP request: the sequences to generate, and the form of its answer."""

    choices: list[Choice]

    @property
    def stream(self) -> bool:
        """Return whether the answer is a stream."""

    def begin(self) -> list[bytes]:
        """Return the events before the first output."""

    def take(self, choice: Choice, output: Output) -> list[bytes]:
        """Append one output of a choice. Returns its server-sent events, if the answer is a stream."""

    def end(self) -> list[bytes]:
        """Return the last events of a stream."""

    def failure(self, error: Mapping[str, object]) -> bytes:
        """Return the event with which a stream ends after a failure."""

    def answer(self) -> dict[str, object]:
        """Return the complete answer of a request that does not stream."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """Fields of a request that decide on the form of its answer.

    Attributes:
        kind: Whether it is a chat or a text completion.
        stream: Whether the answer is a stream.
        include_usage: Whether the stream ends with a chunk of token counts.
        continuous_usage: Whether every chunk has token counts.
        return_token_ids: Whether token ids are returned.
        logprobs: Formatter of log-probabilities.
        wants_logprobs: Whether the answer has log-probabilities of its tokens.
        wants_prompt_logprobs: Whether it has vLLM's `prompt_logprobs`.
        role: Role of the message of a chat.
        prompt_text: Text of a chat's prompt, if it is returned.
        prompt_only: Whether the answer is the prompt alone (`echo` with `max_tokens` 0): the token drawn after it is left out.
    """

    kind: Literal["chat", "text"]
    stream: bool
    logprobs: LogprobFormat
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    wants_logprobs: bool = False
    wants_prompt_logprobs: bool = False
    role: str = "assistant"
    prompt_text: str | None = None
    prompt_only: bool = False


@dataclass(slots=True)
class CompletionJob:
    """One HTTP request: the sequences to generate, and the format of its response."""

    id: str
    model: str
    choices: list[Choice]
    form: AnswerFormat
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def stream(self) -> bool:
        """Return whether the answer is a stream."""
        return self.form.stream

    def take(self, choice: Choice, output: Output) -> list[bytes]:
        """Append one output of a choice. Returns its server-sent events, if the answer is a stream."""
        if self.form.prompt_only:
            output = Output(output.request, finish_reason=output.finish_reason, prompt_logprobs=output.prompt_logprobs)
        choice.add(output)
        return self._chunks(choice, output) if self.form.stream else []

    def begin(self) -> list[bytes]:
        """Return the events before the first output: none."""
        return []

    def end(self) -> list[bytes]:
        """Return the last events of a stream."""
        usage = [self._event([], {"usage": self.usage()})] if self.form.include_usage else []
        return [*usage, b"data: [DONE]\n\n"]

    def failure(self, error: Mapping[str, object]) -> bytes:
        """Return the event with which a stream ends after a failure."""
        return b"data: " + msgspec.json.encode(error) + b"\n\n"

    # Streaming

    def _chunks(self, choice: Choice, output: Output) -> list[bytes]:
        """Return the events for one output. For chat, the first event of a choice carries the role."""
        form, events = self.form, []
        first, choice.opened = not choice.opened, True
        if first and form.kind == "chat":
            delta = {"role": form.role, "content": ""}
            opening = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
            events.append(self._event([opening], self._prompt_facts(choice.request)))
            if choice.before:
                echoed = {"index": choice.index, "delta": {"content": choice.before}, "finish_reason": None}
                events.append(self._event([echoed]))
        text = choice.before + output.text if first and form.kind == "text" else output.text
        body: dict[str, object] = {"index": choice.index}
        body |= {"delta": {"content": text}} if form.kind == "chat" else {"text": text}
        body |= {"logprobs": self._logprobs(choice, output.logprobs, output.prompt_logprobs)}
        body |= {"finish_reason": output.finish_reason, "stop_reason": output.stop_reason}
        if form.return_token_ids:
            body["token_ids"] = output.token_ids
            if first and form.kind == "text":
                body["prompt_token_ids"] = list(choice.request.prompt_ids)
        return [*events, self._event([body])]

    def _event(self, choices: Sequence[Mapping[str, object]], extra: Mapping[str, object] | None = None) -> bytes:
        usage = {"usage": self.usage()} if self.form.continuous_usage and choices else {}
        chunk = {**self._envelope(choices, ".chunk"), **usage, **(extra or {})}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _prompt_facts(self, request: Request) -> dict[str, object]:
        """Return what a chat's answer says of its prompt."""
        ids = {"prompt_token_ids": list(request.prompt_ids)} if self.form.return_token_ids else {}
        text = {} if self.form.prompt_text is None else {"prompt_text": self.form.prompt_text}
        return {**ids, **text}

    def _logprobs(
        self, choice: Choice, own: Sequence[TokenLogprobs], prompt: Sequence[TokenLogprobs]
    ) -> dict[str, object] | None:
        form = self.form
        if not form.wants_logprobs:
            return None
        if form.kind == "chat":
            return form.logprobs.chat(own)
        steps = [*prompt, *own] if choice.before else list(own)
        found = form.logprobs.text(steps, choice.text_offset)
        choice.text_offset += sum(len(form.logprobs.token(step.token_id)) for step in steps)
        return found

    # Whole answers

    def answer(self) -> dict[str, object]:
        """Return the complete response of a request that does not stream."""
        top: dict[str, object] = {}
        if self.form.kind == "chat":
            first = self.choices[0]
            top |= self._prompt_facts(first.request)
            if self.form.wants_prompt_logprobs:
                top["prompt_logprobs"] = self.form.logprobs.prompt(first.prompt_logprobs)
        return self._envelope([self._whole(c) for c in self.choices]) | {"usage": self.usage()} | top

    def _whole(self, choice: Choice) -> dict[str, object]:
        form, text = self.form, choice.before + choice.text
        body: dict[str, object] = {"index": choice.index}
        body |= {"message": {"role": form.role, "content": text}} if form.kind == "chat" else {"text": text}
        body |= {"logprobs": self._logprobs(choice, choice.logprobs, choice.prompt_logprobs)}
        body |= {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        if form.return_token_ids:
            body["token_ids"] = choice.token_ids
        if form.kind == "text":
            if form.return_token_ids:
                body["prompt_token_ids"] = list(choice.request.prompt_ids)
            if form.wants_prompt_logprobs:
                body["prompt_logprobs"] = form.logprobs.prompt(choice.prompt_logprobs)
        return body

    def usage(self) -> dict[str, int]:
        """Return token counts so far. A prompt shared by several choices counts once, as with OpenAI.

        The token that is drawn for an answer of the prompt alone counts too, as in vLLM.
        """
        prompts = {id(c.request.prompt_ids): c.request.prompt_ids for c in self.choices}
        prompt, completion = (
            sum(map(len, prompts.values())),
            sum(len(c.token_ids) or self.form.prompt_only for c in self.choices),
        )
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _envelope(self, choices: Sequence[Mapping[str, object]], suffix: str = "") -> dict[str, object]:
        name = f"chat.completion{suffix}" if self.form.kind == "chat" else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, "choices": choices}
