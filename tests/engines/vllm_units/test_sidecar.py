"""The sidecar as a process survives signals, odd options and a restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from actscope.engines import builtin
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar_protocol import (
    Alive,
    RequestOptions,
    ServedModel,
    SetBank,
    SidecarStart,
    Staged,
    receive,
    rows_ring_spec,
    send,
)
from actscope.frames import ROW_META, SCORES, Frame, Span, SpanFlag, Step
from actscope.ring.host import RingSpec, RingWriter
from actscope.ring.segment import segment_path
from actscope.runtime.process import process_start

ID = "00112233445566aa"


@pytest.fixture
def rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RingWriter, RingWriter]]:
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path / "run"))
    writers = RingWriter.create(RingSpec(256, 64, 64, 256)), RingWriter.create(rows_ring_spec(1, 8, 64, "float32", 256))
    yield writers
    for writer in writers:
        writer.close()


def start_of(rings: tuple[RingWriter, RingWriter], record: Path) -> SidecarStart:
    path = str(builtin.model_path())
    facts = ServedModel(
        served="m", source=path, commit="", tokenizer=path, device="cpu", dtype="float32", n_layers=2, d_model=8,
        max_context=64, vllm="0", runner="V1",
    )  # fmt: skip
    return SidecarStart(
        card_id=ID, group="g", part=0, parts=1, pid=os.getpid(), pid_start=process_start(os.getpid()) or 0,
        settings=msgspec.json.encode(VllmSettings(record=str(record))), facts=facts, ring=rings[0].name,
        rows_ring=rings[1].name, sites=["layers.0.resid_post"], kept=["layers.0.resid_post"], columns=64,
    )  # fmt: skip


@contextmanager
def sidecar(start: SidecarStart) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """One that is ready."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "actscope.engines.vllm.sidecar", str(theirs.fileno())]
    with (
        ours,
        subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as one,
    ):
        theirs.close()
        try:
            send(ours, start)
            alive, bank = receive(ours), receive(ours)
            assert isinstance(alive, Alive) and alive.pid == one.pid and isinstance(bank, SetBank)
            send(ours, Staged(bank.generation))
            wait_for_line(one, "ready")
            yield one, ours
        finally:
            ours.close()
            one.communicate(timeout=30)


def wait_for_line(process: subprocess.Popen[bytes], words: str) -> None:
    """Read what the sidecar logs until a line has these words; fails when it ends before, or within a minute."""
    assert process.stderr is not None
    patience = threading.Timer(60, process.kill)
    patience.start()
    try:
        assert any(words.encode() in line for line in iter(process.stderr.readline, b"")), f"it ended before {words!r}"
    finally:
        patience.cancel()


def healthy(tmp_path: Path) -> bool:
    transport = httpx.HTTPTransport(uds=str(tmp_path / "run" / f"engine-{ID}.sock"), retries=0)
    with httpx.Client(transport=transport) as client:
        return client.get("http://sidecar/health").status_code == 200


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_only_the_end_of_its_socket_ends_the_sidecar(
    tmp_path: Path, rings: tuple[RingWriter, RingWriter], sent: signal.Signals
) -> None:
    """A signal to the whole process group leaves it to vLLM to decide; the recording is finished in the end."""
    with sidecar(start_of(rings, tmp_path / "rec")) as (process, connection):
        process.send_signal(sent)
        assert healthy(tmp_path)
        connection.close()
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("rows", ["0-999999999999", "9" * 5000, "nothing"])
def test_no_option_of_a_client_ends_the_sidecar(
    tmp_path: Path, rings: tuple[RingWriter, RingWriter], rows: str
) -> None:
    """Unknown sites are a warning, and the sidecar goes on recording."""
    with sidecar(start_of(rings, tmp_path / "rec")) as (process, connection):
        send(connection, RequestOptions("r-00000000", rows, ""))
        send(connection, Staged(99))
        wait_for_line(process, "all sites that are kept are recorded")
        assert healthy(tmp_path) and process.poll() is None


def test_a_sidecar_that_is_started_again_finds_the_rings(tmp_path: Path, rings: tuple[RingWriter, RingWriter]) -> None:
    """While the model's process lives and has its rings open, their names stay."""
    start = start_of(rings, tmp_path / "rec")
    with sidecar(start) as (process, connection):
        connection.close()
        process.wait(timeout=20)
    assert segment_path(start.ring).exists()
    with sidecar(start):
        assert healthy(tmp_path)


def write_request(writer: RingWriter, step: int, name: str, rows: int) -> int:
    """All passes of a request, as the worker publishes them, from this step on. Return the next step."""
    for position in range(rows):
        span = Span(f"{name}-0000abcd", position, 1, 0, SpanFlag.FIRST if position == 0 else SpanFlag(0), 1)
        meta = np.array([(position, position, 0, 0, step)], ROW_META)
        writer.write(Step(step, step, (span,), meta), [Frame(SCORES, np.ones((1, 64 + 8), np.float32))])
        step += 1
    writer.write(
        Step(step, step, (Span(f"{name}-0000abcd", 0, 0, 0, SpanFlag.END, 1),), np.empty(0, ROW_META)),
        [Frame(SCORES, np.empty((0, 64 + 8), np.float32))],
    )
    return step + 1


def test_a_mark_finds_what_was_published_before_it_and_a_request_that_comes_just_behind(
    tmp_path: Path, rings: tuple[RingWriter, RingWriter]
) -> None:
    """Clients see scores in the other ring: they may mark a request before the sidecar has read its rows."""
    step = 1
    with sidecar(start_of(rings, tmp_path / "rec")) as (process, _), ThreadPoolExecutor(1) as beside:
        transport = httpx.HTTPTransport(uds=str(tmp_path / "run" / f"engine-{ID}.sock"))
        with httpx.Client(transport=transport, timeout=30) as client:
            for i in range(10):
                process.send_signal(signal.SIGSTOP)
                step = write_request(rings[1], step, f"q{i}", 10)
                marked = beside.submit(client.post, f"http://sidecar/v1/actscope/requests/q{i}/mark", json={})
                process.send_signal(signal.SIGCONT)
                assert marked.result().json().get("rows") == 10
            marked = beside.submit(client.post, "http://sidecar/v1/actscope/requests/late/mark", json={})
            write_request(rings[1], step, "late", 10)
            assert marked.result().status_code == 200
            assert client.post("http://sidecar/v1/actscope/requests/nobody/mark", json={}).status_code == 404
