"""`actscope bench vllm`: tokens per second of real vLLM with actscope's plugin, against the same vLLM without it.

There is one engine process per configuration. All of them live throughout; an idle one computes nothing. A Llama of 134 M random
parameters in float32, compiled as vLLM does by default, computes on all cores but one (or OMP_NUM_THREADS). `vllm serve` leaves
that core to its scheduler; here the sidecar uses it. In each round every configuration generates the same tokens, in a rotating
order, between two runs with the plugin off. A ratio is that of a run to the mean of these two. Rows are encoded and written
during generation. `drain_s` is the time that the rest took after the last token, and `drained` is the ratio as if generation had
waited for the CPU time of that.

The model and vLLM's compile cache are kept in the system's temporary directory for the next run.
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
#: The runs of one round by configuration, and the two runs with the plugin off around them.
Round = tuple[Mapping[str, EngineRun], tuple[EngineRun, EngineRun]]
BARS = {"probes": 0.97, "rows_3_layers": 0.95, "rows_all_layers": 0.90}
#: Minimum number of rounds. Below ENOUGH_S seconds there is only one round, which is a smoke test and no measurement.
ROUNDS, ENOUGH_S = 6, 10.0
REQUESTS, PROMPT, NEW = 16, (16, 81), (24, 41)
_STARTING_AT_ONCE = 2
#: The second warm-up provides the rows for fitting an SVD, which happens once per recording and takes seconds.
_WARM_UPS = 2


def run(seconds: float = 20.0, progress: Progress | None = None) -> list[Result]:
    """Run rounds until `seconds` have passed, but at least six (one if `seconds` < ENOUGH_S).

    `progress` is called with the current measurement.
    """
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
    """Create the private cache directory. Raises RingError if it belongs to another user or is open to others."""
    path = Path(tempfile.gettempdir()) / f"actscope-bench-vllm-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    check_private_dir(path)
    return path


def _started(
    chosen: Sequence[Configuration], start: Callable[[Configuration], BenchEngine], say: Progress
) -> list[BenchEngine]:
    """Start all engines, two at a time. The order of the configurations keeps those with the same graph in different pairs."""
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
    """Return prompts and the number of new tokens for each. All seeds have the same lengths; tokens differ, so none is cached."""
    shape, random = np.random.default_rng(0), np.random.default_rng(1000 + seed)
    lengths, new = shape.integers(*PROMPT, REQUESTS), shape.integers(*NEW, REQUESTS)
    return [random.integers(10, 31000, n).tolist() for n in lengths], new.tolist()


def rotated(items: Sequence[BenchEngine], by: int) -> list[BenchEngine]:
    """Rotate the items by `by`."""
    at = by % len(items)
    return [*items[at:], *items[:at]]


def _rounds(engines: Sequence[BenchEngine], seconds: float, say: Progress) -> list[Round]:
    """Warm up, then run rounds. The run with the plugin off after one round is also the one before the next."""
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
    """Return the results: each configuration but "off", inter-token latency of "probes", speed of "off", and lost rows."""
    found = [_speed(c, rounds) for c in chosen if c.name != "off"]
    offs = [rounds[0][1][0], *(after for _, (_, after) in rounds)]
    probes = [_latency(rounds, "probes", percentile) for percentile in (50, 99)]
    return [*found, *probes, *_of_off(offs), _lost(rounds)]


def speed(run: EngineRun) -> float:
    """Return generated tokens per second; the time includes prefill."""
    return run.tokens / run.seconds


def drained_speed(run: EngineRun) -> float:
    """Return tokens per second as if generation had waited for the sidecar's remaining CPU time."""
    return run.tokens / (run.seconds + run.drain_cpu_s)


def token_gap(run: EngineRun, percentile: float) -> float:
    """Return a percentile of the inter-token latency in seconds. A step counts once per token, except requests' first tokens."""
    gaps = [np.full(tokens - first, seconds) for seconds, tokens, first in run.steps]
    return float(np.percentile(np.concatenate(gaps), percentile))


def against_off(
    rounds: Iterable[Round], name: str, of: Callable[[EngineRun], float], of_off: Callable[[EngineRun], float]
) -> list[float]:
    """Return, for each round, `of` a configuration's run divided by the mean of `of_off` of the runs around it."""
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
    """Return the speed with the plugin off, and its noise: the ratio of each run to the one before."""
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
    """Make a result from the median. A bar is its minimum."""
    value = statistics.median(values)
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "runs": len(values),
        "min": min(values), "max": max(values), "bar": bar, "ok": bar is None or value >= bar,
    }  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """Format a table of overhead and storage by layers and compression."""
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
