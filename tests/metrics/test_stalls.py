"""A real engine's thread is stalled in each known way, and `actscope why` names the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.metrics import stalls
from support.metrics.machine import LoopDevice, loop_device, need_programs
from support.servers import Serving, serving

from actscope.metrics.found import found_processes
from actscope.metrics.meters import IoMeter, SystemMeter
from actscope.metrics.reader import as_json

BODY = {
    "messages": [{"role": "user", "content": "Tell me about a fox"}],
    "stream": True,
    "max_tokens": 200,
    "ignore_eos": True,
    "temperature": 0,
}
_SPIN = "import os\nos.sched_setaffinity(0, {%d}); os.nice(-19); print(flush=True)\nwhile True: pass"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_programs()
    return tmp_path_factory.mktemp("stalls")


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Serving]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stalls.environment(directory).items():
            patch.setenv(name, value)
        with serving() as running:
            yield running


@pytest.fixture(autouse=True)
def here(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the collectors find the engine."""
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(served.directory))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopDevice]:
    need_programs()
    with loop_device(tmp_path_factory.mktemp("loop"), 64) as device:
        yield device


@contextmanager
def measured(directory: Path) -> Iterator[list[str]]:
    """Both collectors, each tenth of a second; yields the arguments for `why`, whose files are complete at the end."""
    files = directory / "system_metrics.jsonl", directory / "tracepoints.jsonl"
    system, io = SystemMeter("bpf"), IoMeter("bpf")
    over = threading.Event()
    lines: tuple[list[str], list[str]] = ([], [])

    def measure() -> None:
        while not over.wait(0.1):
            lines[0].append(as_json(system.measure()))
            lines[1].append(as_json(io.measure()))

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield [word for file in files for word in ("--metrics", str(file))]
    finally:
        over.set()
        thread.join()
        system.close()
        io.close()
        for file, own in zip(files, lines, strict=True):
            file.write_text("\n".join(own) + "\n")


def engine_pid() -> int:
    (found,) = [one.pid for one in found_processes() if one.what.startswith("engine ")]
    return found


def why(served: Serving, directory: Path, stall: Callable[[], None]) -> str:
    """Stall the engine while it answers; returns what `why` says of the slowest token."""
    with measured(directory) as metrics, served.place.client(timeout=120) as client:
        with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
            request = response.headers["x-request-id"]
            for number, _ in enumerate(response.iter_lines()):
                if number == 20:
                    stall()
        time.sleep(0.3)
    command = [sys.executable, "-m", "actscope", "why", request, "--url", served.link, *metrics]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    return said.stdout


def held_up(served: Serving, directory: Path, stall: Callable[[], None], *words: str) -> str:
    """Stall it until `why` says the words of what held the engine up, three times at most; returns all that it said then.

    Beside other work, the engine may truly have waited for a processor longer than for what the test does to it.
    """
    for _ in range(3):
        said = why(served, directory, stall)
        held = next(line for line in said.splitlines() if line.startswith("The engine was held up"))
        if all(one in held for one in words):
            return said
    raise AssertionError(f"expected {words} in: {said}")


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("lock", "waited for a lock for "),
        ("disk", "waited for a block device for "),
        ("page-in", "waited for a page for "),
    ],
)
def test_a_thread_that_waits_is_named_with_its_cause(
    served: Serving, directory: Path, loop: LoopDevice, way: str, words: str
) -> None:
    behind = " woke it." if way == "lock" else f"the busiest device was {loop.name}"
    said = held_up(served, directory, lambda: stalls.ask_to_stall(directory, way, loop.path), words, behind)
    assert "of it the model computed its pass" in said.splitlines()[0]


def test_a_process_that_is_stopped_is_named_with_who_let_it_go_on(served: Serving, directory: Path) -> None:
    def stop() -> None:
        pid = engine_pid()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(stalls.SECONDS)
        os.kill(pid, signal.SIGCONT)

    held_up(served, directory, stop, "was stopped for ", "let it go on.", f"({threading.get_native_id()})")


def test_a_busy_neighbour_is_named(served: Serving, directory: Path) -> None:
    """One that is preferred takes the processor that the engine may use alone."""
    cpu, everywhere = max(os.sched_getaffinity(0)), os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-S", "-c", _SPIN % cpu], stdout=subprocess.PIPE, text=True) as spinner:

        def disturb() -> None:
            _pin({cpu})
            stalls.ask_to_stall(directory, "compute")
            spinner.send_signal(signal.SIGCONT)
            threading.Timer(3 * stalls.SECONDS, spinner.kill).start()

        try:
            assert spinner.stdout is not None
            spinner.stdout.readline()
            spinner.send_signal(signal.SIGSTOP)
            said = why(served, directory, disturb)
        finally:
            spinner.kill()
            _pin(everywhere)
    held = next(line for line in said.splitlines() if line.startswith("The engine was held up"))
    assert "waited for a processor for " in held, said
    assert f"({spinner.pid}) for " in held, said


def _pin(cpus: set[int]) -> None:
    for tid in os.listdir(f"/proc/{engine_pid()}/task"):
        os.sched_setaffinity(int(tid), cpus)
