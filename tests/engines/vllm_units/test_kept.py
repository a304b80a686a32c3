"""Every request that is to be kept is recorded, or told as lost, whatever becomes of the sidecar.

Real sidecar processes, the real client that starts them, and rings that the test writes as the worker does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from engines.vllm_units.test_sidecar import ID, rings, start_of
from support.waiting import until

from actscope.engines.vllm import sidecar_client
from actscope.engines.vllm.row_requests import RowRequests
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_client import Sidecar
from actscope.frames import ROW_META, SCORES, Frame, Span, SpanFlag, Step
from actscope.recording.reading.recording import Recording
from actscope.ring.host import RingWriter

__all__ = ["rings"]

WIDTH = 64 + 8


class Worker:
    """The model's process as the sidecar sees it: requests come, have some rows each, and end. One in three is to be kept."""

    def __init__(self, sidecar: Sidecar, requests: RowRequests, ring: RingWriter, seed: int) -> None:
        self.sidecar, self.requests, self.ring, self.random = sidecar, requests, ring, Random(seed)
        self.running: dict[str, tuple[int, int]] = {}  # position and length
        self.lengths: dict[str, int] = {}
        self.kept: set[str] = set()
        self.step = 0

    def begin(self) -> None:
        name = f"q{len(self.lengths)}"
        keep = len(self.lengths) % 3 == 0
        asked = {"actscope": json.dumps({"keep": "for the test"})} if keep else None
        new = SimpleNamespace(
            req_id=f"{name}-0000abcd", sampling_params=SimpleNamespace(extra_args=asked), lora_request=None
        )
        options = self.requests.begin(new)
        if options is not None:
            self.sidecar.tell(options)
        length = self.random.randint(2, 40)
        self.running[new.req_id] = (0, length)
        self.lengths[name] = length
        if keep:
            self.kept.add(name)

    def publish(self, over: bool = False) -> None:
        """One pass: a row of each request that runs, and the ends of those that had their last before."""
        ended = [name for name, (at, length) in self.running.items() if at == length]
        self.requests.forget(ended)
        for name in ended:
            del self.running[name]
        if not over and len(self.running) < 12:
            self.begin()
        self.step += 1
        spans, meta = [], np.zeros(len(self.running), ROW_META)
        for i, (name, (at, length)) in enumerate(self.running.items()):
            flags = SpanFlag.FIRST if at == 0 else SpanFlag(0)
            if self.requests.has_options(name):
                flags |= SpanFlag.HAS_OPTIONS
            spans.append(Span(name, at, 1, i, flags, 1))
            meta[i] = (at, at, 0, i, self.step)
            self.running[name] = (at + 1, length)
        spans += [Span(name, 0, 0, 0, SpanFlag.END, 1) for name in ended]
        rows = np.repeat(meta["position"][:, None], WIDTH, 1).astype(np.float32)
        self.ring.write(Step(self.step, self.step, tuple(spans), meta), [Frame(SCORES, rows)])


@contextmanager
def working(
    rings: tuple[RingWriter, RingWriter], record: Path, monkeypatch: pytest.MonkeyPatch, pause: float = 0.05
) -> Iterator[Worker]:
    """A worker with its sidecar, whose restarts and reports do not wait for long."""
    monkeypatch.setattr(sidecar_client, "_RESTART_PAUSE_S", pause)
    monkeypatch.setattr(sidecar_client, "_LONGEST_PAUSE_S", pause)
    monkeypatch.setattr(sidecar_client, "_BEAT_S", 0.3)
    requests = RowRequests(VllmSettings(record=str(record), rows="all"), rows_kept=True)
    sidecar = Sidecar(start_of(rings, record), 8, 64, lambda: None, requests, lambda: {"passes": 7})
    try:
        yield Worker(sidecar, requests, rings[1], seed=1)
    finally:
        sidecar.hush()
        pid = sidecar.pid
        sidecar.close()
        if pid is not None:
            until(lambda: not alive(pid), 60, what="the sidecar's end")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def recording(run: Path) -> dict[str, Any]:
    """The recording's state, empty while there is no sidecar to ask."""
    path = str(run / f"engine-{ID}.sock")
    with socket.socket(socket.AF_UNIX) as door:
        if door.connect_ex(path):
            return {}
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
            found: dict[str, Any] = client.get("http://sidecar/v1/actscope/recording", timeout=30).json()
            return found
    except httpx.TransportError:
        return {}


@pytest.mark.timeout(1500)
def test_a_sidecar_killed_twenty_times_under_load_loses_no_kept_request_in_silence(
    tmp_path: Path, rings: tuple[RingWriter, RingWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, incomplete or lost: each kept request is counted once, and those that are counted as whole are."""
    record, run = tmp_path / "rec", tmp_path / "run"
    with working(rings, record, monkeypatch) as worker:
        stop = threading.Event()

        def load() -> None:
            while not stop.wait(0.01):
                worker.publish()

        thread = threading.Thread(target=load)
        thread.start()
        seen: set[int] = set()
        for n in range(20):
            pid = until(lambda: worker.sidecar.pid if worker.sidecar.pid not in seen else None, 120, what="a sidecar")
            seen.add(pid)
            if worker.random.random() < 0.7:
                until(lambda: recording(run), 120, what=f"sidecar {n} that answers")
            stop.wait(worker.random.random() * 3)
            os.kill(pid, signal.SIGKILL)
        until(lambda: worker.sidecar.pid not in seen and recording(run), 120, what="the last sidecar")
        stop.set()
        thread.join()
        while worker.running:
            worker.publish(over=True)
        until(lambda: not worker.requests.unsettled, 60, what="every kept request settled")
        state = recording(run)
        until(lambda: recording(run)["flight"]["running"] == 0, 60, what="no request that runs for ever")
    counts = state["kept_requests"]
    assert sum(counts.values()) == len(worker.kept) and counts["whole"] > 0, (counts, len(worker.kept))
    assert worker.sidecar.deaths == 20 == state["sidecar_restarts"] and state["pending_marks"] == 0
    assert state["engine_counts"] == {"passes": 7}
    assert counts == _on_disk(record, worker) or _no_better_than(counts, _on_disk(record, worker))


def _on_disk(record: Path, worker: Worker) -> dict[str, int]:
    """What a reader finds of the kept requests."""
    found = Recording.open(record)
    counts = {"whole": 0, "incomplete": 0, "lost": 0}
    for name in worker.kept:
        there = {int(p) for p in found.labels(name)["position"]} if name in found.requests else set()
        whole = there == set(range(worker.lengths[name]))
        counts["whole" if whole else "incomplete" if there else "lost"] += 1
    return counts


def _no_better_than(told: dict[str, int], there: dict[str, int]) -> bool:
    """A recorder that died before it could say that all is there makes a request count for less than there is, never for more."""
    return told["whole"] <= there["whole"] and told["lost"] >= there["lost"]


def test_ends_that_were_overwritten_end_requests_all_the_same(
    tmp_path: Path, rings: tuple[RingWriter, RingWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the sidecar stands still the ring is overwritten; afterwards nothing runs, waits or is remembered for ever."""
    with working(rings, tmp_path / "rec", monkeypatch) as worker:
        until(lambda: recording(tmp_path / "run"), 120, what="a sidecar")
        for _ in range(20):
            worker.publish()
        pid = until(lambda: worker.sidecar.pid)
        os.kill(pid, signal.SIGSTOP)
        for _ in range(200):
            worker.publish()
        while worker.running:
            worker.publish(over=True)
        os.kill(pid, signal.SIGCONT)
        until(lambda: not worker.requests.unsettled, 60, what="every kept request settled")
        state = until(lambda: (s := recording(tmp_path / "run"))["flight"]["running"] == 0 and s, 60, what="none runs")
    assert sum(state["kept_requests"].values()) == len(worker.kept) and state["kept_requests"]["lost"] > 0
    assert state["missed_rows"] > 0 and state["pending_marks"] == 0


def test_without_room_for_rows_kept_requests_count_as_lost_and_marks_say_why(
    tmp_path: Path, rings: tuple[RingWriter, RingWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording that cannot be opened costs itself alone: probes are served, and the reason is in every answer."""
    record = tmp_path / "rec"
    record.write_text("a file where the recording should be")
    with working(rings, record, monkeypatch) as worker:
        state = until(lambda: recording(tmp_path / "run"), 120, what="a sidecar")
        assert state["recording"] is False and "rec" in state["failure"]
        for _ in range(30):
            worker.publish()
        until(lambda: not worker.requests.unsettled, 60, what="every kept request settled")
        state = recording(tmp_path / "run")
        assert state["kept_requests"] == {"whole": 0, "incomplete": 0, "lost": len(worker.kept)}
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "run" / f"engine-{ID}.sock"))) as client:
            answer = client.post("http://sidecar/v1/actscope/requests/q1/mark", timeout=30)
        assert answer.status_code == 409 and state["failure"] in answer.json()["error"]["message"]
        assert worker.sidecar.deaths == 0


def test_a_sidecar_that_cannot_start_is_tried_again_for_ever_and_the_log_says_what_waits(
    tmp_path: Path,
    rings: tuple[RingWriter, RingWriter],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Eight deaths are no reason to give up: the ninth start may succeed."""
    caplog.set_level(logging.ERROR, "actscope.vllm")
    real, tries = sidecar_client._spawn, iter(range(100))
    monkeypatch.setattr(sidecar_client, "_spawn", lambda theirs: real(theirs) if next(tries) >= 8 else theirs.close())
    with working(rings, tmp_path / "rec", monkeypatch, pause=0.01) as worker:
        for _ in range(10):
            worker.publish()
        kept = len(worker.kept)
        assert kept
        until(lambda: recording(tmp_path / "run"), 120, what="a sidecar")
        assert worker.sidecar.deaths == 8
        while worker.running:
            worker.publish(over=True)
        until(lambda: not worker.requests.unsettled, 60, what="every kept request settled")
        counts = recording(tmp_path / "run")["kept_requests"]
        assert counts == {"whole": kept, "incomplete": 0, "lost": 0}
    said = [record.getMessage() for record in caplog.records if "it is started again" in record.getMessage()]
    assert len(said) == 8 and f"{kept} requests that are to be kept" in said[-1]
