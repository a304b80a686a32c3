"""`actscope bench vllm`: tokens per second of real vLLM with actscope's plugin, against the same vLLM without it.

One engine process for each configuration, all alive at once; an idle one computes nothing. A Llama of 134 M random parameters,
float32, compiled as vLLM does by default, computes on all cores but one (OMP_NUM_THREADS says otherwise), as under `vllm serve`,
which leaves one to its scheduler; here the sidecar has it. In each round every configuration generates the same, in an order that
rotates, between two runs with the plugin off: a ratio is of a run and the mean of these two. What is recorded is encoded
and written while tokens are generated; what was left to do at the last token is in `*_drain_s`, and `*_drained` counts the
processor time of that as if generation had waited for it.

The model and what vLLM has compiled are kept in the system's temporary directory for the next time.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np

from actscope.bench.support.samples import Result
from actscope.bench.support.vllm_engines import (
    BenchEngine,
    Configuration,
    EngineRun,
    configurations,
    make_model,
    make_probes,
    require_vllm,
    threads,
)
from actscope.runtime.private_files import check_private_dir

Progress = Callable[[str], None]
#: Runs of one round by configuration, and the two with the plugin off around them.
Round = tuple[Mapping[str, EngineRun], tuple[EngineRun, EngineRun]]
BARS = {"probes": 0.97, "rows_3_layers": 0.95, "rows_all_layers": 0.90}
#: Below this many seconds one round is run, which shows that it works and measures nothing.
ROUNDS, ENOUGH_S = 6, 10.0
REQUESTS, PROMPT, NEW = 16, (16, 81), (24, 41)
_STARTING_AT_ONCE = 2
#: The second one brings the rows that an SVD is fitted to, once in a recording, which takes seconds.
_WARM_UPS = 2


def run(seconds: float = 20.0, progress: Progress | None = None) -> list[Result]:
    """All results, of six rounds or more, until `seconds` have gone by; `progress` is told what is being measured."""
    say = progress or (lambda _: None)
    require_vllm()
    cache = cache_directory()
    say("making the model")
    model = make_model(cache / "llama-134m")
    with tempfile.TemporaryDirectory(prefix="acts-") as name, ExitStack() as stack:
        directory = Path(name)
        make_probes(directory / "probe-files")
        chosen = configurations(directory)
        engines = _started(chosen, lambda c: stack.enter_context(BenchEngine(c, model, directory, cache)), say)
        rounds = _rounds(engines, seconds, say)
    return results(chosen, rounds)


def cache_directory() -> Path:
    """Ours alone. Raises RingError where someone else has made it."""
    path = Path(tempfile.gettempdir()) / f"actscope-bench-vllm-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    check_private_dir(path)
    return path


def _started(
    chosen: Sequence[Configuration], start: Callable[[Configuration], BenchEngine], say: Progress
) -> list[BenchEngine]:
    """All engines, two starting at a time; those that compile the same graph one after the other."""
    engines: list[BenchEngine] = []
    for i in range(0, len(chosen), _STARTING_AT_ONCE):
        say(f"starting engines, {i} of {len(chosen)}: minutes the first time, when vLLM compiles")
        starting = [start(configuration) for configuration in chosen[i : i + _STARTING_AT_ONCE]]
        for engine in starting:
            engine.wait_ready()
        engines += starting
    return engines


# --- measuring --------------------------------------------------------------------------------------------------------------


def workload(seed: int) -> tuple[list[list[int]], list[int]]:
    """Prompts, and how many tokens each is to get. Lengths are the same for all seeds; tokens are not, so that none is cached."""
    shape, random = np.random.default_rng(0), np.random.default_rng(1000 + seed)
    lengths, new = shape.integers(*PROMPT, REQUESTS), shape.integers(*NEW, REQUESTS)
    return [random.integers(10, 31000, n).tolist() for n in lengths], new.tolist()


def rotated(items: Sequence[BenchEngine], by: int) -> list[BenchEngine]:
    """The items from another one on each time, so that none always follows the same."""
    at = by % len(items)
    return [*items[at:], *items[:at]]


def _rounds(engines: Sequence[BenchEngine], seconds: float, say: Progress) -> list[Round]:
    """What comes after one round comes before the next."""
    off, others = engines[0], engines[1:]
    for engine in engines:
        say(f"warming up {engine.configuration.name}")
        for earlier in range(_WARM_UPS):
            engine.run(*workload(seed=-1 - earlier))
    until, rounds = time.perf_counter() + seconds, list[Round]()
    before = off.run(*workload(seed=1))
    while len(rounds) < (ROUNDS if seconds >= ENOUGH_S else 1) or time.perf_counter() < until:
        number = len(rounds) + 1
        runs = {}
        for engine in rotated(others, number):
            say(f"round {number}: {engine.configuration.name}")
            runs[engine.configuration.name] = engine.run(*workload(number))
        say(f"round {number}: off")
        after = off.run(*workload(number + 1))
        rounds.append((runs, (before, after)))
        before = after
    return rounds


# --- arithmetic -------------------------------------------------------------------------------------------------------------


def results(chosen: Sequence[Configuration], rounds: Sequence[Round]) -> list[Result]:
    """One result for each configuration but "off", its two of inter-token latency for probes, what "off" did, and lost rows."""
    found = [_speed(c, rounds) for c in chosen if c.name != "off"]
    offs = [rounds[0][1][0], *(after for _, (_, after) in rounds)]
    probes = [_latency(rounds, "probes", percentile) for percentile in (50, 99)]
    return [*found, *probes, *_of_off(offs), _lost(rounds)]


def speed(run: EngineRun) -> float:
    """Tokens per second, prompts included in the time."""
    return run.tokens / run.seconds


def drained_speed(run: EngineRun) -> float:
    """Tokens per second, had generation waited for what the sidecar still had to compute."""
    return run.tokens / (run.seconds + run.drain_cpu_s)


def token_gap(run: EngineRun, percentile: float) -> float:
    """That percentile of the seconds between two tokens of a request: each step counts once for every token but a first one."""
    gaps = [np.full(tokens - first, seconds) for seconds, tokens, first in run.steps]
    return float(np.percentile(np.concatenate(gaps), percentile))


def against_off(
    rounds: Iterable[Round], name: str, of: Callable[[EngineRun], float], of_off: Callable[[EngineRun], float]
) -> list[float]:
    """`of` a configuration's run in each round, divided by the mean of `of_off` around it."""
    return [of(runs[name]) / statistics.mean(map(of_off, offs)) for runs, offs in rounds]


def _speed(configuration: Configuration, rounds: Sequence[Round]) -> Result:
    name, bar = configuration.name, BARS.get(configuration.name)
    runs = [found[name] for found, _ in rounds]
    result = _result(name, against_off(rounds, name, speed, speed), "x", "tokens/s with the plugin off, paired", bar)
    result |= {
        "layers": configuration.layers,
        "compression": configuration.compression,
        "tokens_per_s": statistics.median(map(speed, runs)),
        "drained": statistics.median(against_off(rounds, name, drained_speed, speed)),
        "drain_s": statistics.median(run.drain_s for run in runs),
        "sidecar_cores": statistics.median(run.sidecar_cpu_s / run.seconds for run in runs),
        "bytes_per_inference": statistics.median(run.stored_bytes for run in runs) / REQUESTS,
        "rows": sum(run.rows for run in runs),
    }
    for percentile in (50, 99):
        result[f"itl_p{percentile}_ratio"] = _latency(rounds, name, percentile)["value"]
    return result


def _latency(rounds: Sequence[Round], name: str, percentile: int) -> Result:
    def gap(run: EngineRun) -> float:
        return token_gap(run, percentile)

    baseline = "time between tokens with the plugin off, paired"
    return _result(f"itl_p{percentile}_ratio", against_off(rounds, name, gap, gap), "x", baseline)


def _of_off(offs: Sequence[EngineRun]) -> list[Result]:
    """How fast it is without us, and how steady: the ratio of one run to the one before is what noise alone makes."""
    speeds = [speed(run) for run in offs]
    drift = [later / earlier for earlier, later in pairwise(speeds)]
    where = f"{threads()} of {os.cpu_count()} cores for the model"
    return [
        _result("off_tokens_per_s", speeds, "tok/s", where),
        _result("off_itl_p50_ms", [token_gap(run, 50) * 1e3 for run in offs], "ms", where),
        _result("off_drift", drift, "x", "the run with the plugin off before"),
    ]


def _lost(rounds: Sequence[Round]) -> Result:
    lost = [sum(run.lost_rows for run in runs.values()) for runs, _ in rounds]
    found = _result("lost_rows", [float(n) for n in lost], "rows", "all rows of all configurations")
    return found | {"value": float(sum(lost)), "bar": 0, "ok": not any(lost)}


def _result(name: str, values: Sequence[float], unit: str, baseline: str, bar: float | None = None) -> Result:
    """The median; a bar is the least that it may be."""
    value = statistics.median(values)
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "runs": len(values),
        "min": min(values), "max": max(values), "bar": bar, "ok": bar is None or value >= bar,
    }  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """Overhead and storage per layers and compression, for people."""
    of = {result["name"]: result for result in results}
    head = ("layers", "compression", "tokens/s", "overhead", "bytes/inference", "drained")
    rows = [("-", "plugin off", f"{of['off_tokens_per_s']['value']:.1f}", "", "", "")]
    rows += [
        (
            result["layers"], result["compression"], f"{result['tokens_per_s']:.1f}", f"{1 / result['value'] - 1:+.1%}",
            f"{result['bytes_per_inference']:,.0f}", f"{1 / result['drained'] - 1:+.1%}",
        )
        for result in results if "layers" in result
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    )
