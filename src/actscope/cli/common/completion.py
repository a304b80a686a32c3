"""Ask one question through the gateway: a streamed completion with scores, assembled by position."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from actscope.errors import UpstreamError
from actscope.gateway.settings import GatewaySettings


def ask(settings: GatewaySettings, model: str, prompt: str, **sampling: Any) -> dict[str, Any]:
    """Return the answer with the scores of every token. A model without a chat template continues the prompt.

    Args:
        settings: Settings of a running gateway, for its address and token.
        model: Name of the model.
        prompt: The user's message.
        **sampling: Sampling parameters of the OpenAI API. None is not sent.

    Returns:
        `model`, `request`, `prompt`, `answer`, `prompt_tokens`, `probes`, `tokens` (position, id, text, scores and states of
        each) and the fields of the wire's `final`.

    Raises:
        UpstreamError: The gateway or the engine answered with an error. Carries its message.
    """
    base, headers = f"http://{settings.host}:{settings.port}/v1", {"Authorization": f"Bearer {settings.token}"}
    body = {"model": model, "stream": True, "actscope": True}
    body |= {name: value for name, value in sampling.items() if value is not None}
    if httpx.get(f"{base}/actscope/info", headers=headers).json()["engine"].get("has_chat_template", True):
        path, body["messages"] = "chat/completions", [{"role": "user", "content": prompt}]
    else:  # a base model continues the text
        path, body["prompt"] = "completions", prompt
    whole = _Answer(prompt)
    with httpx.stream("POST", f"{base}/{path}", json=body, headers=headers, timeout=None) as response:
        if response.is_error:
            raise UpstreamError(msgspec.json.decode(response.read())["error"]["message"])
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                whole.take(msgspec.json.decode(line[6:]))
    return whole.result(model)


class _Answer:
    """An answer that is assembled from the chunks of a stream."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._text: list[str] = []
        self._header: dict[str, Any] = {}
        self._probes: list[dict[str, Any]] = []
        self._tokens: dict[int, dict[str, Any]] = {}
        self._final: dict[str, Any] = {}

    def take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            raise UpstreamError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            self._text.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
            payload = choice.get("actscope") or {}
            self._header = self._header or payload
            self._probes = payload.get("probes", self._probes)
            if "tokens" in payload:
                self._take_tokens(payload["tokens"])
            if "scores" in payload:
                self._take_scores(payload["scores"])
            self._final = payload.get("final", self._final)

    def _take_tokens(self, block: dict[str, Any]) -> None:
        for position, (token, text) in enumerate(zip(block["ids"], block["text"], strict=True), block["start"]):
            self._tokens[position] = {"position": position, "id": token, "text": text, "scores": {}, "states": {}}

    def _take_scores(self, block: dict[str, Any]) -> None:
        states = block.get("states")
        for i, row in enumerate(block["rows"]):
            token = self._tokens[block["start"] + i]
            for j, probe in enumerate(self._probes):
                token["scores"][probe["id"]] = row[j]
                token["states"][probe["id"]] = states[i][j] if states else "c"

    def result(self, model: str) -> dict[str, Any]:
        return {
            "model": model,
            "request": self._header.get("request"),
            "prompt": self._prompt,
            "answer": "".join(self._text),
            "prompt_tokens": self._header.get("prompt_tokens"),
            "probes": self._probes,
            "tokens": [self._tokens[position] for position in sorted(self._tokens)],
            **self._final,
        }
