"""Runs a function in a forked child, with limits on time and memory. Its result comes back as JSON.

The parent has torch and transformers imported and runs no operation of torch, so that a child starts at once and finds no lock
held. A child that crashes, hangs or takes too much memory is one more result.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable


class ChildFailed(Exception):
    """The child gave no result; the message says why."""


#: Default limit on wall-clock time, in seconds. A machine may be busy with other things.
WALL_SECONDS = 900.0


def run_isolated(
    work: Callable[[], object], *, cpu_seconds: float, memory_bytes: int, wall_seconds: float = WALL_SECONDS
) -> object:
    """Return what `work` returns, a JSON value.

    Args:
        work: The function. Its output on stdout and stderr is dropped.
        cpu_seconds: Limit on CPU time.
        memory_bytes: Limit on the address space that the child may take beyond the parent's.
        wall_seconds: Limit on wall-clock time.

    Raises:
        ChildFailed: The child raised, crashed or went over a limit.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(work, writer, cpu_seconds, memory_bytes)
    os.close(writer)
    try:
        text = _read(reader, time.monotonic() + wall_seconds)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if text is None:
        raise ChildFailed(f"took over {wall_seconds:g} s")
    if not text:
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGXCPU:
            raise ChildFailed(f"took over {cpu_seconds:g} s of CPU time")
        raise ChildFailed(f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}")
    answer = json.loads(text)
    if "error" in answer:
        raise ChildFailed(answer["error"])
    return answer["result"]


def _child(work: Callable[[], object], writer: int, cpu_seconds: float, memory_bytes: int) -> None:
    """Run `work`, send its result and end the process."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        limit = _address_space() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        used = math.ceil(time.process_time() + cpu_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (used, used + 1))
        answer: dict[str, object] = {"result": work()}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split()) or _place(error)}"[:500]}
    with contextlib.suppress(OSError), os.fdopen(writer, "w") as pipe:
        json.dump(answer, pipe)
    os._exit(0)


def _place(error: BaseException) -> str:
    """Return the line that raised an error, as "file.py: code"."""
    lines = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(lines[-1].filename)}: {lines[-1].line}" if lines else ""


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _read(reader: int, until: float) -> bytes | None:
    """Return all bytes up to the end of the pipe, or None if the time is over before."""
    parts: list[bytes] = []
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], left)
        if ready:
            part = os.read(reader, 1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None
