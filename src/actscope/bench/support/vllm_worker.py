"""One vLLM engine for `actscope bench vllm`, driven by JSON lines on standard input.

`python -m actscope.bench.support.vllm_worker ARGUMENTS` starts it.

The scheduler and the model run on this process's main thread, so that a step's time includes no queue. Everything that
vLLM prints goes to stderr; only responses go to the process's original stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict

#: One engine step: its seconds, the number of its tokens, and how many of them were the first of their request.
StepTime = tuple[float, int, int]


class BenchWorker:
    """One `vllm.LLM`, with a method per job, whose arguments are those of the job's JSON."""

    def __init__(self, arguments: dict[str, object]) -> None:
        from vllm import LLM

        self._llm = LLM(**arguments)
        self._engine = self._llm.llm_engine
        self._begun = 0

    def generate(self, prompts: list[list[int]], new: list[int]) -> dict[str, object]:
        """Generate `new[i]` tokens greedily for each `prompts[i]`, all concurrently. Returns the time in total and per step."""
        began = time.perf_counter()
        for prompt, n in zip(prompts, new, strict=True):
            self._add(prompt, n)
        steps, seen = [], set[str]()
        while self._engine.has_unfinished_requests():
            steps.append(self._step(seen))
        return {"seconds": time.perf_counter() - began, "steps": steps}

    def counts(self) -> dict[str, int]:
        """Return the plugin's counts of rows so far; empty if it is off."""
        worker = self._engine.engine_core.engine_core.model_executor.driver_worker.worker
        session = getattr(worker, "_actscope_session", None)
        return {} if session is None else asdict(session.counts())

    def _add(self, prompt: list[int], n: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._begun += 1
        params = SamplingParams(
            temperature=0.0, max_tokens=n, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        self._engine.add_request(f"bench-{os.getpid()}-{self._begun}", {"prompt_token_ids": prompt}, params)

    def _step(self, seen: set[str]) -> StepTime:
        began = time.perf_counter()
        outputs = self._engine.step()
        seconds = time.perf_counter() - began
        tokens = {o.request_id: sum(len(c.token_ids) for c in o.outputs) for o in outputs}
        first = sum(1 for request, n in tokens.items() if n and request not in seen)
        seen.update(request for request, n in tokens.items() if n)
        return seconds, sum(tokens.values()), first


def main(arguments: str) -> None:
    """Report that the engine is ready, then execute jobs until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = BenchWorker(json.loads(arguments))
    answers.write(json.dumps({"result": os.getpid()}) + "\n")
    for line in sys.stdin:
        job = json.loads(line)
        result = getattr(worker, job.pop("do"))(**job)
        answers.write(json.dumps({"result": result}) + "\n")
    worker._engine.engine_core.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
