"""A script of the capture fork and a folder of the live-probes plugin, both unchanged, with stock vLLM and our plugin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.vllm import mixed
from support.vllm.bed import Configuration, Generated, Offline
from support.vllm.models import WIDTH
from support.vllm.pool import short_directory
from support.vllm.watching import Ring, Seen, card, external, recording_of

from actscope.recording.reading.recording import Recording

VECTOR = np.random.default_rng(3).standard_normal(WIDTH)
ENVIRONMENT = {
    "VLLM_CAPTURE_ENABLED": "1",
    "TARGET_LAYER": "2",
    "PROBE_MODEL": "some-org/Some-Model",
}
WORKER = "vllm.v1.worker.gpu_worker_capture.WorkerCapture"


@dataclass
class Ran:
    """What was left of the run: its answers, its recording, its scores, and the probes in its table's order."""

    done: list[Generated]
    recording: Recording
    seen: dict[str, Seen]
    log: str


@pytest.fixture(scope="module")
def ran(model: Callable[[str], Path], bed_directory: Path) -> Iterator[Ran]:
    directory = short_directory()
    folder = directory / "src/probes/Some-Model"
    folder.mkdir(parents=True)
    for name in ("enc_2_named.json", "bare.json"):
        (folder / name).write_text(json.dumps({"vector": VECTOR.tolist()}))
    configuration = Configuration(model("llama"), arguments={"worker_cls": WORKER}, environment=ENVIRONMENT)
    with Offline(configuration, directory, bed_directory / "cache") as engine:
        ring = Ring(card(engine))
        done = engine.generate([mixed.prompt(1, 30), mixed.prompt(2, 12)], ids=["first", "second"])
        seen = {external(request)[0]: one for request, one in ring.read().items()}
        ring.close()
    (place,) = (directory / "results/activations").iterdir()
    yield Ran(done, recording_of(place), seen, engine.log)
    shutil.rmtree(directory, ignore_errors=True)


def test_the_capture_forks_script_records_every_request_at_every_layer(ran: Ran) -> None:
    """VLLM_CAPTURE_ENABLED=1 and its worker_cls, nothing else: all positions of all requests at all layers, below results/."""
    assert set(ran.recording.sites) == set(mixed.STREAM)
    for request, n_prompt in (("first", 30), ("second", 12)):
        for site in mixed.STREAM:
            assert len(ran.recording.rows(site, request=request)) == n_prompt + 8 - 1
    assert f"ACTSCOPE_RECORD={ran.recording.path}" in ran.log and "worker_cls" in ran.log


def test_bare_vectors_are_scored_at_the_target_layer_as_the_older_plugin_did(ran: Ran) -> None:
    """score = ReLU(activation @ vector), layer 2 by the file's name or by TARGET_LAYER; found in src/probes/<model>."""
    rows = ran.recording.rows(mixed.STREAM[2], request="first")
    expected = np.maximum(rows.values @ VECTOR.astype(np.float32), 0)
    scores = ran.seen["first"].scores[np.argsort(ran.seen["first"].rows["position"])][:, :2]
    assert np.abs(scores - expected[:, None]).max() < 1e-4 * np.abs(expected).max() and expected.max() > 0
