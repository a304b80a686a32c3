"""The other side of `bed.Offline`: a vLLM engine in a process of its own, driven by JSON lines on stdin.

Whatever the engine prints goes to stderr; answers alone go to the stdout that the process was started with.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

# the answers' way out is taken before vLLM or its children can write to it
_ANSWERS: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def plain(output: Any) -> dict[str, Any]:
    """A `RequestOutput` in words of JSON."""
    return {
        "id": output.request_id,
        "finished": output.finished,
        "cached": output.num_cached_tokens or 0,
        "choices": [
            {"index": c.index, "token_ids": list(c.token_ids), "text": c.text, "finish_reason": c.finish_reason}
            for c in output.outputs
        ],
    }


class Worker:
    """One `vllm.LLM` and the jobs that it takes: one method per job, arguments as in the job's JSON."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self.llm = LLM(**arguments)
        self.engine = self.llm.llm_engine

    def add(
        self, id: str, prompt: list[int] | str, params: dict[str, Any], lora: str | None = None, priority: int = 0
    ) -> str:
        """Queue a request; its engine id."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        words: Any = prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}
        adapter = LoRARequest("adapter", 1, lora) if lora else None
        sampling = SamplingParams(**params)
        engine_id: str = self.engine.add_request(id, words, sampling, lora_request=adapter, priority=priority)
        return engine_id

    def step(self, n: int = 1) -> list[list[dict[str, Any]]]:
        """Up to `n` steps; per step the outputs of the requests that got a token."""
        steps = []
        for _ in range(n):
            if not self.engine.has_unfinished_requests():
                break
            steps.append([plain(output) for output in self.engine.step()])
        return steps

    def drain(self) -> list[dict[str, Any]]:
        """Steps until nothing is left to do; the last output of each request."""
        last: dict[str, dict[str, Any]] = {}
        while self.engine.has_unfinished_requests():
            last |= {output.request_id: plain(output) for output in self.engine.step()}
        return list(last.values())

    def abort(self, ids: list[str]) -> None:
        self.engine.abort_request(ids)

    def reset(self) -> None:
        """Nothing left running, and nothing left in the prefix cache."""
        self.engine.abort_request(list(self.engine.output_processor.request_states), internal=True)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        self.llm.reset_prefix_cache()

    def call(self, target: str, arguments: dict[str, Any]) -> Any:
        """`module:function(llm, **arguments)` in the engine's process."""
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)(self.llm, **arguments)


def answer(message: dict[str, Any]) -> None:
    _ANSWERS.write(json.dumps(message) + "\n")


def serve(worker: Worker) -> None:
    """Takes jobs until stdin ends."""
    for line in sys.stdin:
        job = json.loads(line)
        method: Callable[..., Any] = getattr(worker, job.pop("op"))
        try:
            answer({"result": method(**job)})
        except Exception as error:  # the test's own boundary: it raises there
            answer({"error": "".join(traceback.format_exception(error))})


if __name__ == "__main__":  # spawned children import this file again
    began = time.monotonic()
    engine = Worker(json.loads(sys.argv[1]))
    answer({"result": {"seconds": time.monotonic() - began, "pid": os.getpid()}})
    serve(engine)
    if hasattr(engine.engine.engine_core, "shutdown"):
        engine.engine.engine_core.shutdown()
