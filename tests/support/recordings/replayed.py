"""Recordings to replay: of the built-in model by the real engine, and small ones made by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from support.gateway.stage import Picture
from support.recordings.made import frames_of, step_of
from support.waiting import until

from actscope.cli.replay import steps_taken
from actscope.engines.builtin import NAME
from actscope.engines.hf.engine import Engine
from actscope.engines.hf.loading import LoadedModel, load
from actscope.engines.hf.request import Output, Request, Sampling
from actscope.engines.replay.engine import ReplayEngine
from actscope.frames import Step
from actscope.gateway.server import GatewayServer, open_server
from actscope.gateway.settings import GatewaySettings
from actscope.probes import Probe, ProbeInfo
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder
from actscope.sites import Site

SITES = ("layers.0.resid_post", "layers.3.resid_post", "layers.4.resid_post")
PROMPTS = {"fox": "Tell me about a fox in the snow", "scary": "Tell me a scary story", "count": "Count to ten"}


def model_facts(loaded: LoadedModel, **more: Any) -> dict[str, Any]:
    """What a recording says of this model."""
    facts = {"name": loaded.name, "revision": loaded.revision, "d_model": loaded.d_model, "n_layers": loaded.n_layers}
    return {**facts, "max_context": loaded.max_context, "dtype": str(loaded.dtype), "device": "cpu", **more}


def record_builtin(path: Path, *, max_tokens: int = 24, codec: str = "zstd", sites: Sequence[str] = SITES) -> Path:
    """Three requests in one batch through the real engine, their rows recorded by its taps."""
    loaded = load(NAME)
    ended = threading.Semaphore(0)

    def deliver(outputs: list[Output]) -> None:
        for output in outputs:
            if output.finish_reason is not None:
                ended.release()

    with Recorder.create(path, RecordingSpec(tuple(sites), codec, model=model_facts(loaded))) as recorder:
        recorder.texts = lambda ids: [str(loaded.tokenizer.decode([i])) for i in ids]
        engine = Engine(loaded, sink=recorder, deliver=deliver).start()
        try:
            engine.keep_rows([Site.parse(site) for site in sites]).result()
            for name, prompt in PROMPTS.items():
                engine.submit(Request(name, _rendered(loaded, prompt), Sampling(max_tokens=max_tokens, temperature=0)))
            for _ in PROMPTS:
                assert ended.acquire(timeout=60)
        finally:
            engine.close()
    return path


def _rendered(loaded: LoadedModel, prompt: str) -> list[int]:
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def record_by_hand(
    path: Path,
    steps: Sequence[Step],
    *,
    sites: Sequence[str] = SITES,
    lost: Callable[[Step, str], bool] = lambda step, site: False,
    texts: Callable[[Sequence[int]], list[str]] | None = None,
    model: dict[str, Any] | None = None,
) -> Path:
    """Rows that follow from request, position and site (see recording.making); `lost` ones are not put."""
    facts = {"name": "hand/made", "revision": "1", "n_layers": 6} | (model or {})
    with Recorder.create(path, RecordingSpec(tuple(sites), "zstd", model=facts)) as recorder:
        recorder.texts = texts
        for step in steps:
            recorder.begin(step)
            for frame in frames_of(step, sites):
                if not lost(step, frame.site):
                    recorder.put(step, frame.site, frame.rows)
            recorder.end(step)
    return path


def token_by_token(request: str, n: int, *, n_prompt: int = 4, first_number: int = 1) -> list[Step]:
    """A prompt at once, then one row a step."""
    steps = [step_of(first_number, [(request, 0, n_prompt)], n_prompt=n_prompt)]
    return steps + [
        step_of(first_number + i, [(request, n_prompt + i - 1, 1)], n_prompt=n_prompt)
        for i in range(1, n - n_prompt + 1)
    ]


def probe(name: str, site: str = SITES[0], d: int = 8, **info: Any) -> Probe:
    """A random direction that nobody knew of when the recording was made."""
    weight = np.random.default_rng(sum(name.encode())).standard_normal(d).astype(np.float32)
    given: dict[str, Any] = {"activation": "identity", "bias": 0.25, "range": (-4.0, 4.0)} | info
    return Probe(ProbeInfo(id=name, site=site, **given), weight)


@dataclass
class Watching:
    """A gateway in front of a replay."""

    server: GatewayServer
    client: httpx.Client

    def picture(self, request: str) -> Picture:
        """All of one request, once it has ended."""
        answer = until(lambda: self._ended(request), 60)
        whole = Picture()
        whole.add({key: value for key, value in answer.items() if key != "state"})
        return whole

    def state(self, request: str) -> str:
        return str(self.client.get(f"/v1/actscope/requests/{request}").json()["state"])

    def _ended(self, request: str) -> Any:
        answer = self.client.get(f"/v1/actscope/requests/{request}")
        return answer.json() if answer.status_code == 200 and answer.json()["state"] != "running" else None

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = self.client.get("/v1/actscope/info").json()["ring"]
        return found


@contextmanager
def watching(engine: ReplayEngine, *, late: bool = False) -> Iterator[Watching]:
    """A real gateway on a thread; the replay begins as soon as it has attached, as `actscope replay` does, or has begun."""
    server = open_server(GatewaySettings(port=0, upstream=engine.card.id))
    started = threading.Event()
    server.on_started = lambda taken: started.set()
    if not late:
        engine.start(lambda: steps_taken(server))
    thread = threading.Thread(target=server.run_here)
    thread.start()
    try:
        assert started.wait(30)
        headers = {"authorization": f"Bearer {server.settings.token}"}
        url = f"http://127.0.0.1:{server.settings.port}"
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            yield Watching(server, client)
    finally:
        server.should_exit = True
        thread.join()
