"""What dies, and what is left: consumers, generators, the server itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.feed.feeding import TOKEN, Feeding, feeding
from support.waiting import until

from actscope.errors import FeedError, FeedNotReady, UpstreamError
from actscope.feed.buffer.allocator import RowRange
from actscope.feed.buffer.gather import unchanged
from actscope.feed.buffer.layout import Layout
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.buffer.position import Position
from actscope.feed.client.shm_transport import ShmTransport
from actscope.feed.server import checkpoint
from actscope.feed.server.broker import Broker
from actscope.feed.server.checkpoint import StateFile
from actscope.feed.server.generator_process import Supervisor
from actscope.feed.settings import FeedSettings

_CONSUMER = """
import sys
from actscope.feed.client.client import FeedClient
client = FeedClient(sys.argv[1], sys.argv[2], group=sys.argv[3], transport="near")
client._opened().claim(200, 60.0)
print("holding", flush=True)
sys.stdin.read()
"""


def consumer(feed: Feeding, group: str) -> subprocess.Popen[str]:
    """Another process that holds 200 rows."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CONSUMER, feed.url, TOKEN, group],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().strip() == "holding"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A feed whose leases are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path_factory.mktemp("run", numbered=True)))
        with feeding(lease_seconds=3.0, group_seconds=0.2) as running:  # a busy machine holds heartbeats up
            with running.client() as client:
                client.wait_for_data(1000)
            yield running


def test_a_consumer_that_is_killed_gives_up_what_it_held(impatient: Feeding) -> None:
    """Its rows are counted as abandoned at once, its window goes on, and nobody gets the rows a second time."""
    buffer = impatient.server.service.broker.buffer
    before = buffer.counts.abandoned_rows
    process = consumer(impatient, "killed")
    assert buffer.held_rows == 200
    ended(process)
    until(lambda: buffer.counts.abandoned_rows == before + 200)
    assert buffer.held_rows == 0


def test_a_consumer_that_is_stopped_loses_its_lease_and_a_living_one_does_not(impatient: Feeding) -> None:
    """One that is silent for `lease_seconds` loses its rows; one that merely takes long keeps them, for its thread is heard."""
    buffer = impatient.server.service.broker.buffer
    living, stopped = consumer(impatient, "living"), consumer(impatient, "stopped")
    expired = buffer.counts.expired_leases
    os.kill(stopped.pid, signal.SIGSTOP)
    until(lambda: buffer.counts.expired_leases == expired + 1)
    assert buffer.held_rows == 200
    ended(stopped)
    ended(living)
    until(lambda: buffer.held_rows == 0)


def test_rows_that_were_taken_back_are_not_delivered() -> None:
    """A reader whose window has begun to be filled again is told that what it copied may be torn."""
    memory = FeedMemory.create(Layout(2, 8, 1, 4, "float32"))
    extents = [RowRange(1, 3, 0, 0, 0, 8, 0, 8)]
    memory.generations[1] = 3
    assert unchanged(memory, extents)
    memory.generations[1] = 4
    assert not unchanged(memory, extents)
    memory.close()


def test_a_descriptor_that_is_no_memory_of_the_feed_is_refused_and_closed(tmp_path: Path) -> None:
    """A process that connects to many wrong feeds does not run out of descriptors."""
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(64))
    for found in (os.memfd_create("not sealed", os.MFD_ALLOW_SEALING), os.open(plain, os.O_RDONLY)):
        with pytest.raises(
            FeedError, match=r"feed buffer: (expected .* sealed bytes|descriptor .* is no sealed memory)"
        ):
            FeedMemory.attach(found, Layout(2, 8, 1, 4, "float32"))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(found)


def test_a_consumer_cannot_write_into_the_memory(impatient: Feeding) -> None:
    """What it is given can be mapped for reading alone."""
    with impatient.client(group="reader", transport="near") as client:
        near = client._opened()
        assert near is not None
        with pytest.raises(PermissionError):
            FeedMemory(near.rows._memory.fd, near.rows.layout, writable=True)


def test_the_shared_memory_socket_needs_the_token(impatient: Feeding) -> None:
    """A process without the token or with malformed messages is refused, and the feed goes on."""
    path = impatient.server.service.socket_path
    assert oct(os.stat(path).st_mode & 0o777) == "0o600"
    with pytest.raises(UpstreamError, match="token"):
        ShmTransport(path, "another token", "g")
    for nonsense in (b"\xff" * 64, b"", b"\x04\x00\x00\x00abcd"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    with impatient.client(group="after", transport="near") as client:
        assert len(client.take(10).values) == 10


def test_a_client_that_does_not_read_gets_no_torn_rows_and_holds_nothing_for_ever(impatient: Feeding) -> None:
    """A download that stalls is ended, its rows are counted as abandoned, and others go on."""
    buffer = impatient.server.service.broker.buffer
    before = buffer.counts.abandoned_rows
    port = impatient.server.settings.port
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(
            f"GET /activations/stream?batch_size=2000&batches=1000&group=slow HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        until(lambda: buffer.counts.abandoned_rows > before)
    until(lambda: buffer.held_rows == 0)


def test_a_generator_that_cannot_begin_is_reported_with_its_reason() -> None:
    """A missing dataset fails the feed at once, without a restart, and every client gets the reason."""
    with feeding(dataset="no/such/file.txt") as feed, feed.client(transport="http") as client:
        with pytest.raises(FeedError, match=r"failed: .*no/such/file\.txt"):
            client.wait_for_data()
        with pytest.raises(FeedError, match=r"no/such/file\.txt"):
            client.take(1)
        assert client.get_stats()["state"] == "failed"


def test_a_silent_generator_is_killed_and_another_goes_on() -> None:
    """A generator that is stopped is seen, killed and replaced."""
    with feeding(heartbeat_seconds=3.0, texts=120) as feed, feed.client() as client:
        client.wait_for_data(100)
        first = feed.generator_pid
        os.kill(first, signal.SIGSTOP)
        until(lambda: feed.server.service.generator_stats()["pid"] not in (None, first), 60)
        assert len(client.take(1500).values) == 1500
        assert not Path(f"/proc/{first}").exists()


_SERVER = """
import sys, json
from actscope.feed.server.run import serve
from actscope.feed.settings import FeedSettings
serve(FeedSettings(**json.loads(sys.argv[1])), lambda settings: print(settings.url, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_leaves_nothing_behind(how: signal.Signals, runtime_directory: Path) -> None:
    """Killed or told to go: its generator ends, no shared memory has a name, and a waiting client gets an error."""
    from actscope.feed.client.client import FeedClient

    settings: dict[str, Any] = {
        "port": 0, "token": TOKEN, "sites": "2", "texts": 100, "buffer_rows": 2000, "threads": 1,
        "state": str(runtime_directory / "feed-state.json"),
    }  # fmt: skip
    server = subprocess.Popen([sys.executable, "-c", _SERVER, json.dumps(settings)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    client = FeedClient(server.stdout.readline().strip(), TOKEN, timeout=60.0)
    client.wait_for_data(500)
    batch = client.take(500)
    generator = client.get_stats()["generator"]["pid"]
    assert generator is not None
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    assert "memfd:actscope-feed" in maps and "/dev/shm/" not in maps  # it has no name that could be left
    failed: list[Exception] = []
    waiting = threading.Thread(target=lambda: failed.append(_error_of(client)))
    os.kill(generator, signal.SIGSTOP)  # so that the client waits
    waiting.start()
    server.send_signal(how)
    os.kill(generator, signal.SIGCONT)
    server.wait(30)
    until(lambda: not Path(f"/proc/{generator}").exists())
    waiting.join(30)
    assert isinstance(failed[0], UpstreamError | FeedError) and not isinstance(failed[0], FeedNotReady)
    assert torch.isfinite(batch.values).all()  # what was taken is the client's own
    client.close()
    server.stdout.close()
    if how is signal.SIGTERM:
        kept = Position.parse(json.loads(Path(settings["state"]).read_text())["position"])
        taken = Position.parse(batch.next)
        assert (kept.epoch, kept.cursor) >= (taken.epoch, taken.cursor)  # never before what was taken
        assert not list(runtime_directory.glob("feed-*.sock"))


def _error_of(client: object) -> Exception:
    try:
        while True:
            client.take(1000)  # type: ignore[attr-defined]
    except Exception as error:
        return error


@pytest.mark.parametrize("steps", range(5))
async def test_a_supervisor_ends_when_it_is_cancelled_whatever_happens_at_that_moment(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feed whose generator has failed is woken and cancelled at once; it used to live on, and the server never ended."""
    monkeypatch.setattr(Supervisor, "_respawn", lambda self: None)
    broker = Broker(FeedSettings(), Position(1))
    running = asyncio.ensure_future(Supervisor(broker).run())
    waiting = asyncio.ensure_future(broker.take("group", 1, object(), wait=60.0))
    for _ in range(3):
        await asyncio.sleep(0)
    broker.notify()
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    waiting.cancel()
    done, _ = await asyncio.wait({running, waiting}, timeout=5.0)
    assert done == {running, waiting} and running.cancelled() and waiting.cancelled()


async def test_a_state_file_that_cannot_be_written_is_said_once_and_written_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk costs neither the feed nor the position: while it lasts, what is kept is known to be out of date."""
    monkeypatch.setattr(checkpoint, "_EVERY_S", 0.001)
    (tmp_path / "state").mkdir()
    file = StateFile.open(FeedSettings(model="m", dataset="builtin", state=str(tmp_path / "state" / "feed.json")))
    broker: Any = SimpleNamespace(
        facts=SimpleNamespace(revision="r", fingerprint="f"),
        buffer=SimpleNamespace(lowest_position=lambda: Position(1)),
    )
    (tmp_path / "state").rename(tmp_path / "away")
    keeping = asyncio.ensure_future(file.keep(broker))
    write, attempts = file.write, list[object]()

    def counted(*arguments: Any) -> None:
        attempts.append(arguments)
        write(*arguments)

    monkeypatch.setattr(file, "write", counted)
    await reached(lambda: len(attempts) > 3 and file.failure != "")
    (tmp_path / "away").rename(tmp_path / "state")
    await reached(lambda: not file.failure)
    keeping.cancel()
    assert json.loads((tmp_path / "state" / "feed.json").read_text())["position"] == str(Position(1))
    assert len([record for record in caplog.records if "cannot be written" in record.getMessage()]) == 1


async def reached(state: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a state that the event loop brings about."""
    async with asyncio.timeout(seconds):
        while not state():
            await asyncio.sleep(0.005)
