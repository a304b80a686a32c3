"""A real Ray cluster of several nodes on this machine: one raylet for each, on loopback addresses of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class RayCluster:
    """The first node is the head. Every node has one CPU, so one worker. Use as a context manager."""

    def __init__(self, nodes: int, environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.2", 0))
            self.address = f"127.0.0.2:{free.getsockname()[1]}"
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it
        self.environment = {
            **os.environ,
            **environment,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._wanted = nodes

    def __enter__(self) -> RayCluster:
        try:
            port = self.address.partition(":")[2]
            head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}"]
            for number in range(self._wanted):  # one after the other: two that start at once get in each other's way
                self._start(number, head if number == 0 else [f"--address={self.address}"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._nodes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in self._processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def workers(self) -> list[int]:
        """Process ids of the harvest's actors."""
        return [pid for pid in self._processes() if b"_Station" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def _start(self, number: int, more: list[str]) -> None:
        log = self._folder / f"node-{number}.txt"
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--block", f"--node-ip-address=127.0.0.{number + 2}", "--num-cpus=1"]
        command += ["--object-store-memory=80000000", "--include-log-monitor=false", "--disable-usage-stats", *more]
        with log.open("wb") as out:
            environment = {**self.environment, "ACTSCOPE_TEST_CLUSTER": self._folder.name}
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        self._nodes.append(process)
        until = time.monotonic() + 60
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)

    def _processes(self) -> list[int]:
        """Everything that the nodes have started, by a mark in its environment."""
        mark = f"ACTSCOPE_TEST_CLUSTER={self._folder.name}".encode()
        return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal() and mark in _environ(path)]


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""
