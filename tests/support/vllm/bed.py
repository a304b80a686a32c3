"""Real vLLM engines for the tests, each in a process of its own: `Offline` is driven by steps, `Served` by HTTP.

A process of its own makes the environment exact: variables are read at import, and plugins are loaded once per process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import actscope

HERE = Path(__file__).parent
START_SECONDS = 240
ANSWER_SECONDS = 120
GREEDY: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "TOKENIZERS_PARALLELISM": "false",
}
#: What would change an engine if it leaked in from the shell or from another test.
_OURS = ("VLLM_", "ACTSCOPE_", "TRITON_", "TORCHINDUCTOR_", "XDG_", "OMP_", "LD_PRELOAD", "PYTHONPATH", "HF_")


@dataclass(frozen=True)
class Configuration:
    """How an engine is started. The defaults are the fastest start: eager, V1, one process, no tokenizer warm-up.

    compile: "eager"; "traced" is Dynamo's graph run eagerly (custom ops and hooks are traced, nothing is compiled);
    "compiled" is Inductor, as users on CPU have it.
    runner: "v2" runs vLLM's V2 runner with Triton's interpreter, see `fake_triton/`.
    async_scheduling: schedules a step before the last one's tokens are known, see `forced_async/`.
    plugin: False starts vLLM as if no general plugin were installed.
    changing_hooks: another plugin adds to the stream, see `changing_hooks/`.
    reads_images: the model has a vision part, see `offered_vision/`.
    arguments: more engine arguments, by their Python names. environment: more variables.
    """

    model: Path
    compile: Literal["eager", "traced", "compiled"] = "eager"
    runner: Literal["v1", "v2"] = "v1"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    async_scheduling: bool = False
    plugin: bool = True
    changing_hooks: bool = False
    reads_images: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pipeline_parallel > 1 and self.runner == "v1" and self.compile != "compiled":
            raise ValueError(
                "pipeline stages: vLLM's V1 runner makes the buffers of later stages in the warm-up, and on CPU warms up only "
                "when compiled: take runner='v2' or compile='compiled'"
            )

    @property
    def processes(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    def engine_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `vllm.LLM`, flags of `vllm serve` alike."""
        chosen: dict[str, Any] = {
            "dtype": "float32",
            "max_model_len": 512,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 512,
            "block_size": 32,
            "kv_cache_memory_bytes": 64 << 20,
            "enforce_eager": self.compile == "eager",
            "tensor_parallel_size": self.tensor_parallel,
            "pipeline_parallel_size": self.pipeline_parallel,
            "async_scheduling": self.async_scheduling,
        }
        return chosen | dict(self.arguments)

    def variables(self, directory: Path, cache: Path) -> dict[str, str]:
        """The whole environment: the caller's without anything of vLLM's or ours, then this configuration's."""
        own = {
            "ACTSCOPE_RUNTIME_DIR": str(directory / "run"),
            "VLLM_CACHE_ROOT": str(cache),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "XDG_CACHE_HOME": str(directory / "xdg-cache"),
            "XDG_CONFIG_HOME": str(directory / "xdg-config"),
            "XDG_RUNTIME_DIR": str(directory / "xdg-run"),
            "PYTHONPATH": os.pathsep.join(self._paths()),
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        return kept | _QUIET | own | self._switches() | dict(self.environment)

    def _paths(self) -> list[str]:
        replicas = self.arguments.get("data_parallel_size", 1)
        folders = {
            "fake_triton": self.runner == "v2", "forced_async": self.async_scheduling, "cpu_gather": replicas > 1,
            "changing_hooks": self.changing_hooks, "offered_vision": self.reads_images,
        }  # fmt: skip
        vision = [str(Path(sys.prefix) / "vision")] if self.reads_images else []
        own = [*vision, str(HERE.parent.parent), str(Path(actscope.__file__).parents[1])]  # the actscope that is tested
        return [str(HERE / folder) for folder, wanted in folders.items() if wanted] + own

    def _switches(self) -> dict[str, str]:
        switches: dict[str, str] = {}
        if not self.plugin:
            switches |= {"VLLM_PLUGINS": "forced_async" if self.async_scheduling else ""}
        if self.compile == "traced":
            switches |= {"VLLM_CPU_CI_ENV": "1"}
        if self.runner == "v2":
            switches |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}
        if self.processes > 1:
            switches |= {"VLLM_CPU_OMP_THREADS_BIND": "|".join(str(n) for n in range(self.processes))}
        return switches


@dataclass(frozen=True)
class Generated:
    """What a request came to, or has come to so far. `engine_id` is the id that the scheduler and the ring know it by."""

    id: str
    engine_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None
    finished: bool
    cached: int
    choices: tuple[Mapping[str, Any], ...]


class EngineProcess:
    """A process group of its own, its log, and its private directories; ended at the end of the `with`.

    directory: private to this engine; a short path, because a unix socket's may have 107 bytes.
    cache: vLLM's cache root, private when absent. Sharing one between engines saves 9 s of inspecting the model's class, and
    Inductor's part of compiling.
    """

    def __init__(self, configuration: Configuration, directory: Path, cache: Path | None = None) -> None:
        self.configuration = configuration
        self.directory = directory
        self.runtime_directory = directory / "run"
        self.log_path = directory / "engine.log"
        self.cache = cache or directory / "cache"
        self.environment = configuration.variables(directory, self.cache)
        for path in ("run", "xdg-run"):
            (directory / path).mkdir(mode=0o700, parents=True, exist_ok=True)

    #: Otherwise standard output is part of the log: a pipe that nobody reads would stop the engine when it is full.
    answers_on_stdout = True

    def command(self) -> list[str]:
        raise NotImplementedError

    def ready(self) -> None:
        """Returns when the engine takes requests; raises with the log's end when it never will."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        began = time.monotonic()
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                self.command(), env=self.environment, cwd=self.directory, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self.answers_on_stdout else log, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        try:
            self.ready()
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, seconds: float = 30) -> None:
        """Ends it as a terminal's Ctrl-C does; what is left of its process group after `seconds` is killed."""
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.kill()

    def ask_to_end(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the whole group: what a crash, or the kernel's OOM killer, does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def ended(self, doing: str) -> AssertionError:
        """The error to raise when the process is gone, or silent."""
        return AssertionError(f"the engine ended while {doing} (exit {self.process.poll()}):\n{self.log[-6000:]}")


class Offline(EngineProcess):
    """`vllm.LLM` in one process, driven from the test step by step; see `worker.py` for the jobs."""

    def __init__(self, configuration: Configuration, directory: Path, cache: Path | None = None) -> None:
        super().__init__(configuration, directory, cache)
        self.environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | self.environment
        self._engine_ids: dict[str, str] = {}

    def command(self) -> list[str]:
        arguments = {"model": str(self.configuration.model), "disable_log_stats": True}
        return [
            sys.executable,
            "-m",
            "support.vllm.worker",
            json.dumps(arguments | self.configuration.engine_arguments()),
        ]

    def ready(self) -> None:
        self.started = self._answer("starting")

    def ask_to_end(self) -> None:
        """stdin's end is the worker's sign to leave."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def ask(self, op: str, **arguments: Any) -> Any:
        """One job and its result."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.ended(op) from None
        return self._answer(op)

    def _answer(self, doing: str) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise self.ended(doing)
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"{doing}: {answer['error']}")
        return answer["result"]

    def add(
        self, id: str, prompt: Sequence[int] | str, lora: Path | None = None, priority: int = 0, **params: Any
    ) -> str:
        """Queue a request, greedy unless `params` say otherwise; its engine id."""
        prompt = prompt if isinstance(prompt, str) else list(prompt)
        job = {
            "id": id,
            "prompt": prompt,
            "params": {**GREEDY, **params},
            "lora": lora and str(lora),
            "priority": priority,
        }
        self._engine_ids[id] = self.ask("add", **job)
        return self._engine_ids[id]

    def step(self, n: int = 1) -> list[list[Generated]]:
        """Up to `n` engine steps, fewer when nothing is left; per step the requests that got tokens, as they stand."""
        return [[self._generated(output) for output in outputs] for outputs in self.ask("step", n=n)]

    def drain(self) -> dict[str, Generated]:
        """Steps until every request is done; what each came to, by external id."""
        return {output["id"]: self._generated(output) for output in self.ask("drain")}

    def abort(self, *ids: str) -> None:
        self.ask("abort", ids=list(ids))

    def reset(self) -> None:
        """Aborts what runs and empties the prefix cache."""
        self.ask("reset")

    def call(self, target: str, **arguments: Any) -> Any:
        """`module:function(llm, **arguments)` in the engine's process; arguments and result are JSON."""
        return self.ask("call", target=target, arguments=arguments)

    def generate(
        self, prompts: Sequence[Sequence[int] | str], ids: Sequence[str] | None = None, **params: Any
    ) -> list[Generated]:
        """All prompts at once, to their ends, in the prompts' order; `params` of one are those of all."""
        names = list(ids or (f"r{n}" for n in range(len(prompts))))
        for name, prompt in zip(names, prompts, strict=True):
            self.add(name, prompt, **params)
        done = self.drain()
        return [done[name] for name in names]

    def _generated(self, output: dict[str, Any]) -> Generated:
        first = output["choices"][0]
        return Generated(
            output["id"], self._engine_ids[output["id"]], tuple(first["token_ids"]), first["text"],
            first["finish_reason"], output["finished"], output["cached"], tuple(output["choices"]),
        )  # fmt: skip


class Served(EngineProcess):
    """`vllm serve` on a free port of loopback: its API server and its engine, each a process of its own."""

    answers_on_stdout = False

    def __init__(self, configuration: Configuration, directory: Path, cache: Path | None = None) -> None:
        super().__init__(configuration, directory, cache)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        # not `vllm serve`: its parser asks for the version of a distribution "vllm", and this one is "vllm-cpu"
        serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.configuration.model)]
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", self.configuration.model.name]
        return serve + place + flags(self.configuration.engine_arguments())

    def ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise self.ended("starting")
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)  # another process opens the port; there is nothing to wait on
        raise self.ended(f"starting, after {START_SECONDS} s")

    def post(self, path: str, body: Mapping[str, Any], request_id: str | None = None) -> dict[str, Any]:
        """The JSON answer to a JSON request; `request_id` is sent as X-Request-Id."""
        headers = {"Content-Type": "application/json"} | ({"X-Request-Id": request_id} if request_id else {})
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Python names of engine arguments as `vllm serve` takes them."""
    words = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return words


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
