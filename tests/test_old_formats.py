"""What the first release wrote still opens, with the values that it had; its client still gets rows from today's feed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.feed.feeding import TOKEN, feeding

import actscope
from actscope.harvest import open_harvest
from actscope.harvest.storage import open_storage
from actscope.harvest.verifying import verify as verify_harvest
from actscope.probes import load_probe

DATA = Path(__file__).parent / "data"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected-0.1.json").read_text())
#: Run with the old modules: a client of the time, over both transports.
OLD_CLIENT = """
import json, sys
import actscope
from actscope.feed.client import FeedClient
assert actscope.__file__.startswith(sys.argv[3]), actscope.__file__
found = {}
for transport in ("near", "http"):
    with FeedClient(sys.argv[1], sys.argv[2], transport=transport, group=transport, timeout=60.0) as client:
        client.wait_for_data(64)
        values = client.get_activations_tensor(64)
        found[transport] = [list(values.shape), str(values.dtype), bool(values.isfinite().all())]
        assert client.get_stats()["counts"]["granted_rows"] >= 64
print(json.dumps(found))
"""


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@pytest.fixture
def recording(tmp_path: Path) -> actscope.Recording:
    return actscope.open(shutil.copytree(DATA / "recording-0.1", tmp_path / "run.acts"))


def test_an_old_recording_opens_with_the_rows_and_labels_that_it_had(recording: actscope.Recording) -> None:
    assert (recording.requests, list(recording.sites), recording.n_rows) == (
        EXPECTED["requests"],
        EXPECTED["sites"],
        EXPECTED["n_rows"],
    )
    for name, expected in EXPECTED["rows"].items():
        site, _, request = name.rpartition("/")
        rows = recording.rows(site, request=request)
        assert digest(rows.values) == expected["sha256"]
        assert rows.labels["position"].tolist() == expected["positions"]
        assert rows.labels["token_id"].tolist() == expected["token_ids"]


def test_an_old_recording_is_verified_and_described(recording: actscope.Recording) -> None:
    """The same answers that `actscope verify` and `actscope info` print, from Python."""
    verification = recording.verify()
    assert verification.ok and verification.labels == recording.n_rows and not verification.unlabelled
    assert verification.rows == recording.n_rows * len(recording.sites)
    assert recording.summary()["tokens"] == recording.n_rows and recording.summary()["error_worst"] == 0.0
    assert recording.describe()["complete"] and recording.describe()["n_requests"] == len(EXPECTED["requests"])


def test_an_old_probe_loads_and_scores_its_test_vectors() -> None:
    probe = load_probe(DATA / "probe-0.1.safetensors")
    assert (probe.id, probe.info.site) == (EXPECTED["probe"]["id"], EXPECTED["probe"]["site"])
    assert probe.test_scores.tolist() == pytest.approx(EXPECTED["probe"]["scores"])


def test_an_old_harvest_opens_verifies_and_gives_the_same_batches(tmp_path: Path) -> None:
    path = shutil.copytree(DATA / "harvest-0.1", tmp_path / "rows")
    harvest, expected = open_harvest(path), EXPECTED["harvest"]
    assert (harvest.n_rows, list(harvest.sites)) == (expected["n_rows"], expected["sites"])
    assert harvest.shard(0).labels("token_id")[:16].tolist() == expected["token_ids"]
    assert digest(next(iter(harvest.batches(harvest.sites[0], 64, seed=1))).numpy()) == expected["batch_sha256"]
    assert verify_harvest(open_storage(str(path)), lambda *_: None).ok


def test_an_old_client_gets_rows_from_todays_feed() -> None:
    """Over the unix socket with shared memory, and over HTTP: the client's modules are those of the first release."""
    modules = DATA / "feed-client-0.1.zip"
    with feeding() as feed:
        command = [sys.executable, "-c", OLD_CLIENT, feed.url, TOKEN, str(modules)]
        environment = os.environ | {"PYTHONPATH": str(modules)}
        out = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == {way: [[64, 256], "torch.float32", True] for way in ("near", "http")}
