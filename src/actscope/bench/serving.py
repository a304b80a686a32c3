"""`actscope bench serving`: a long, mixed load on real vLLM through the gateway. Memory must stay steady, nothing may be lost.

vLLM serves the built-in model with its probes and a recording. Clients ask without a pause: streams with scores, whole answers,
two choices at once, streams that are left half-way, and requests that are kept. Every answer must have the scores of all its
tokens. With `kills`, the sidecar is killed as often, spread over the run. In the end every request that was to be kept must be
counted: recorded whole, in part, or lost. With `bare`, vLLM runs alone: the baseline of its memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

import httpx
import numpy as np

from actscope.bench.support.samples import Result
from actscope.bench.support.vllm_engines import require_vllm
from actscope.bench.support.vllm_serving import bearer, serves, vllm_gateway, vllm_server, wait_until
from actscope.engines.builtin import NAME
from actscope.errors import SettingsError
from actscope.runtime.process import parent_of

Progress = Callable[[str], None]
ANSWER_S = 120.0
#: Tolerated growth in MiB between the third and the last tenth of a run, of the gateway, vLLM's API server, its engine and
#: worker, and the sidecar.
STEADY_MB = {"gateway": 24.0, "vllm_server": 64.0, "vllm_engine": 64.0, "sidecar": 64.0}
_SAMPLE_S = 2.0
#: Small, so that the recorder's buffer is full before memory is compared.
_FLIGHT_GB = 0.02
_KEEP_SHARE = 0.1
_WORDS = ("fox", "snow", "river", "boat", "stone", "garden", "letter", "north", "candle", "winter")
#: Kinds of requests, with their shares.
_KINDS = {"stream": 0.5, "whole": 0.2, "choices": 0.1, "left": 0.2}


class SoakBody(TypedDict):
    """SoakBody of a request."""

    model: str
    messages: list[dict[str, str]]
    ignore_eos: bool
    max_tokens: int
    actscope: NotRequired[dict[str, str] | bool]
    n: int


@dataclass(slots=True)
class SoakLoad:
    """What became of the requests, and the memory of the processes.

    Attributes:
        done: Requests by what became of them: `right`, `left`, `refused`, `without_scores`, `broken`.
        told: The first words of the server for each kind of failure.
        kept: Requests that were to be kept.
        kills: How often the sidecar was killed.
        memory: (seconds, name of the processes, MiB).
        bare: There are no scores: an answer is right if all its tokens came.
    """

    done: Counter[str] = field(default_factory=Counter)
    told: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    kills: int = 0
    memory: list[tuple[float, str, float]] = field(default_factory=list)
    bare: bool = False

    def fail(self, what: str, words: str) -> None:
        """Count a failure."""
        self.done[what] += 1
        self.told.setdefault(what, words[:300])


@dataclass(frozen=True, slots=True)
class SoakStage:
    """The running processes."""

    url: str
    token: str
    gateway: int | None
    vllm: int
    runtime_directory: Path


def run(seconds: float, progress: Progress, *, clients: int = 16, kills: int = 0, bare: bool = False) -> list[Result]:
    """Run the load for `seconds`, after the start of vLLM.

    Args:
        seconds: Length of the load.
        progress: Called with the current state.
        clients: Number of clients; each has one request at a time.
        kills: How often the sidecar is killed.
        bare: Ask vLLM directly, without the plugin and the gateway: the baseline of its memory.

    Raises:
        SettingsError: vLLM is not installed, or `bare` is given with `kills`.
        UpstreamError: vLLM or the gateway does not start, or vLLM ends.
    """
    require_vllm()
    if bare and kills:
        raise SettingsError(
            "--bare with --kills: without the plugin there is no sidecar to kill; leave one of them out"
        )
    with tempfile.TemporaryDirectory(prefix="acts-") as name:
        if bare:
            progress("starting vLLM")
            with vllm_server(Path(name), plugin=False) as (engine, vllm):
                wait_until(serves, engine, "", vllm, Path(name), progress)
                stage = SoakStage(engine, "", None, vllm.pid, Path(name) / "run")
                load = asyncio.run(_run(stage, seconds, clients, 0, progress))
            return _results(load, None, seconds, clients, 0)
        progress("starting vLLM and the gateway")
        with (
            vllm_server(Path(name), _recorded(Path(name))) as (engine, vllm),
            vllm_gateway(engine, Path(name), progress) as (url, token, gateway),
        ):
            stage = SoakStage(url, token, gateway.pid, vllm.pid, Path(name) / "run")
            load = asyncio.run(_run(stage, seconds, clients, kills, progress))
            counted = _await_kept(stage, load.kept, progress)
    return _results(load, counted, seconds, clients, kills)


# --- the load -------------------------------------------------------------------------------------------------------------


async def _run(stage: SoakStage, seconds: float, clients: int, kills: int, progress: Progress) -> SoakLoad:
    load, begin = SoakLoad(bare=stage.gateway is None), time.monotonic()
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=0
    )  # the pool closes some that it has handed out
    headers = bearer(stage.token)
    async with (
        httpx.AsyncClient(
            base_url=stage.url, headers=headers, timeout=ANSWER_S, limits=limits, trust_env=False
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for number in range(clients):
            group.create_task(_client(client, random.Random(number), begin + seconds, load))
        group.create_task(_watch(stage, seconds, begin, kills, load, progress))
    return load


async def _client(client: httpx.AsyncClient, chance: random.Random, end: float, load: SoakLoad) -> None:
    while time.monotonic() < end:
        kind = chance.choices([*_KINDS], [*_KINDS.values()])[0]
        keep = chance.random() < _KEEP_SHARE
        options: dict[str, str] | bool = {"keep": "of the soak"} if keep else True
        words = " ".join(chance.choices(_WORDS, k=chance.randint(2, 60)))
        body: SoakBody = {
            "model": NAME, "messages": [{"role": "user", "content": f"Tell me about {words}"}], "ignore_eos": True,
            "max_tokens": chance.randint(4, 64), "actscope": options, "n": 2 if kind == "choices" else 1,
        }  # fmt: skip
        if load.bare:
            del body["actscope"]
        load.kept += keep * body["n"]
        try:
            await (_left if kind == "left" else _stream if kind == "stream" else _whole)(client, body, chance, load)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            load.fail("broken", f"{kind}: {type(error).__name__}: {error} {error.__cause__!r} {error.__context__!r}")


async def _whole(client: httpx.AsyncClient, body: SoakBody, chance: random.Random, load: SoakLoad) -> None:
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        load.fail("refused", answer.text)
        return
    found = answer.json()
    finals = [choice.get("actscope", {}).get("final") for choice in found["choices"]]
    _judge(finals, found["usage"], body, load)


async def _stream(client: httpx.AsyncClient, body: SoakBody, chance: random.Random, load: SoakLoad) -> None:
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        if answer.status_code != 200:
            load.fail("refused", (await answer.aread()).decode())
            return
        last, usage = None, None
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                last = choice.get("actscope", {}).get("final") or last
    _judge([last], usage, body, load)


async def _left(client: httpx.AsyncClient, body: SoakBody, chance: random.Random, load: SoakLoad) -> None:
    """Leave a stream after some events, as a browser that is closed does."""
    events = chance.randint(0, 12)
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            load.fail("refused", (await answer.aread()).decode())
            return
        async for _ in answer.aiter_lines():
            events -= 1
            if events < 0:
                break
    load.done["left"] += 1


def _judge(
    finals: Sequence[dict[str, int] | None], usage: dict[str, int] | None, body: SoakBody, load: SoakLoad
) -> None:
    """Count an answer: all tokens are there, and all but the last of each choice have a score."""
    if usage is None or usage["completion_tokens"] != body["max_tokens"] * body["n"]:
        load.fail("broken", f"{body['n']} x {body['max_tokens']} tokens were asked for, and came: {usage}")
        return
    tokens = usage["prompt_tokens"] + body["max_tokens"]
    whole = all(final and final["present"] == tokens and final["computed"] == tokens - 1 for final in finals)
    if load.bare or whole:
        load.done["right"] += 1
    else:
        load.fail("without_scores", f"{tokens} tokens: {finals}")


# --- beside the load ------------------------------------------------------------------------------------------------------


async def _watch(
    stage: SoakStage, seconds: float, begin: float, kills: int, load: SoakLoad, progress: Progress
) -> None:
    """Sample memory, kill the sidecar when its time has come, and say how it goes."""
    due = [begin + seconds * (i + 0.5) / kills for i in range(kills)]
    while (now := time.monotonic()) < begin + seconds:
        if due and now >= due[0]:
            killed = _kill_sidecar(stage)
            load.kills += killed
            del due[: min(1, killed)]  # none is there while it is started again: then the next one is killed
        processes = {
            "gateway": [] if stage.gateway is None else [stage.gateway],
            "vllm_server": [stage.vllm],
            "vllm_engine": _descendants(stage.vllm),
            "sidecar": _sidecars(stage),
        }
        memory = {name: _private_mb(pids) for name, pids in processes.items()}
        load.memory += [(now - begin, name, mb) for name, mb in memory.items()]
        progress(f"{now - begin:.0f} s, {dict(load.done)}, MiB { ({n: round(mb) for n, mb in memory.items()}) }")
        await asyncio.sleep(min(_SAMPLE_S, max(0.1, (due[0] if due else now + _SAMPLE_S) - now)))


def _recorded(directory: Path) -> dict[str, str]:
    """Return the settings of the plugin: the rows of requests that are to be kept go into a recording."""
    kept = str(directory / "kept.acts")
    return {"ACTSCOPE_RECORD": kept, "ACTSCOPE_ROWS": "asked", "ACTSCOPE_FLIGHT_GB": str(_FLIGHT_GB)}


def _kill_sidecar(stage: SoakStage) -> int:
    """Kill the sidecar, and return how many there were."""
    found = _sidecars(stage)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def _sidecars(stage: SoakStage) -> list[int]:
    """Return the sidecars of this vLLM. They are no descendants of it: they outlive it to finish the recording."""
    own = f"ACTSCOPE_RUNTIME_DIR={stage.runtime_directory}".encode()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [p for p in pids if b"actscope.engines.vllm.sidecar" in _read(p, "cmdline") and own in _read(p, "environ")]


def _private_mb(pids: list[int]) -> float:
    """Return the private resident memory of processes, in MiB; shared mappings are left out."""
    lines = [line for pid in pids for line in _read(pid, "status").decode().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError):
                parents[int(name)] = parent_of(int(name))
    found: list[int] = []
    layer = [pid]
    while layer:
        layer = [child for child, parent in parents.items() if parent in layer and child not in found]
        found += layer
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _await_kept(stage: SoakStage, kept: int, progress: Progress) -> dict[str, int]:
    """Wait until every request that was to be kept is counted, at most 60 seconds. Return the counts."""
    until, found = time.monotonic() + 60, dict[str, int]()
    headers = {"Authorization": f"Bearer {stage.token}"}
    with httpx.Client(base_url=stage.url, headers=headers, timeout=30, trust_env=False) as client:
        while time.monotonic() < until:
            answer = client.get("/v1/actscope/recording")
            if answer.status_code == 200:
                counts = answer.json()["kept"]
                found = {name: counts[f"{name}_requests"] for name in ("whole", "incomplete", "lost")}
                if sum(found.values()) >= kept:
                    break
            progress(f"{found} of {kept} kept requests are counted")
            time.sleep(0.5)  # the recording does not notify: poll
    return found


# --- results --------------------------------------------------------------------------------------------------------------


def _results(load: SoakLoad, counted: dict[str, int] | None, seconds: float, clients: int, kills: int) -> list[Result]:
    asked = f"{clients} clients, {sum(load.done.values())} requests in {seconds:.0f} s"
    failed = {name: load.done[name] for name in ("refused", "without_scores", "broken")}
    told = "".join(f"; {name}: {words}" for name, words in load.told.items())
    requests = [
        _result("requests_right", load.done["right"], "requests", asked),
        _result("requests_left", load.done["left"], "requests", asked),
        *(_result(f"requests_{name}", value, "requests", asked + told, bar=0) for name, value in failed.items()),
    ]
    if counted is None:
        return [*requests, *(_growth(load, name, seconds) for name in ("vllm_server", "vllm_engine"))]
    return [
        *requests,
        *(_growth(load, name, seconds) for name in STEADY_MB),
        _result("sidecar_kills", load.kills, "kills", f"{kills} asked for"),
        _result("kept_asked", load.kept, "requests", "none: an absolute figure"),
        *(_result(f"kept_{name}", value, "requests", "of kept_asked") for name, value in counted.items()),
        _result("kept_uncounted", load.kept - sum(counted.values()), "requests", "whole, incomplete or lost", bar=0),
    ]


def _growth(load: SoakLoad, name: str, seconds: float) -> Result:
    """Return how far the median of the last tenth exceeds that of the third, when caches have filled, in MiB."""
    of = [(at / seconds, mb) for at, who, mb in load.memory if who == name]
    tenths = [[mb for at, mb in of if 10 * at >= i and (10 * at < i + 1 or i == 9)] for i in range(10)]
    medians = [float(np.median(tenth or [mb for _, mb in of])) for tenth in tenths]
    baseline = f"private memory in MiB, median of each tenth of the run: {', '.join(f'{mb:.0f}' for mb in medians)}"
    return _result(f"{name}_growth_mb", round(medians[9] - medians[2], 2), "MiB", baseline, bar=STEADY_MB[name])


def _result(name: str, value: float, unit: str, baseline: str, *, bar: float | None = None) -> Result:
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "runs": 1,
        "min": value, "max": value, "bar": bar, "ok": bar is None or value <= bar,
    }  # fmt: skip
