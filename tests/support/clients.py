"""Servers for the tests of clients: each runs in the virtual environment that it is installed in, the clients in theirs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.gateway.stage import Place, await_scores
from support.vllm.bed import Configuration, Served

from actscope.engines.builtin import NAME, model_path, probes_path

ROOT = Path(__file__).parents[2]
MAIN = ROOT / ".venv/bin/python"
VLLM = ROOT / ".venv-vllm/bin/python"
#: Room for as many requests at once as vLLM takes by default.
WIDE = {"max_model_len": 1024, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "kv_cache_memory_bytes": 1 << 30}


def why_not_here() -> str | None:
    """Return why the tests of clients do not run in this environment, or None if they do."""
    if Path(sys.prefix).resolve() != (ROOT / ".venv-clients").resolve():
        return "the clients are in an environment of their own: run `make test-clients`"
    missing = [str(python.relative_to(ROOT)) for python in (MAIN, VLLM) if not python.exists()]
    return f"no {', '.join(missing)}: run `make test-clients`" if missing else None


@dataclass(frozen=True)
class Target:
    """A gateway to talk to, with the server behind it if that is reachable: `serve` has none."""

    place: Place
    direct: str | None = None

    @property
    def base_url(self) -> str:
        return f"{self.place.url}/v1"

    @property
    def model(self) -> str:
        return self.place.model

    @property
    def token(self) -> str:
        return self.place.token


class ServedByVllm(Served):
    """vLLM's server, run by the environment that vLLM is installed in."""

    def command(self) -> list[str]:
        return [str(VLLM), *super().command()[1:]]


@contextmanager
def vllm_server(directory: Path) -> Iterator[Served]:
    """The built-in model and its probes in vLLM on CPU."""
    environment = {"ACTSCOPE_PROBES": str(probes_path()), "ACTSCOPE_MODEL_NAME": NAME, "OMP_NUM_THREADS": "1"}
    configuration = Configuration(model_path(), arguments=WIDE, environment=environment)
    with ServedByVllm(configuration, directory) as served:
        yield served


@contextmanager
def command(directory: Path, *arguments: str) -> Iterator[str]:
    """`actscope <arguments>` until it prints its link, which is returned; interrupted at the end as a terminal does."""
    environment = os.environ | {"ACTSCOPE_RUNTIME_DIR": str(directory)}
    words = [str(MAIN), "-m", "actscope", *arguments, "--port", "0"]
    log = directory / "actscope.log"
    with log.open("w") as errors:
        process = subprocess.Popen(words, stderr=errors, env=environment)
    try:
        yield _link(process, log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _link(process: subprocess.Popen[bytes], log: Path) -> str:
    from support.waiting import until

    def look() -> str | None:
        assert process.poll() is None, f"actscope ended: {log.read_text()}"
        return next((line.split()[-1] for line in log.read_text().splitlines() if "/?token=" in line), None)

    return until(look, 120, what="the link of actscope")


@contextmanager
def serve() -> Iterator[Target]:
    """`actscope serve` with the built-in model."""
    with short_directory() as directory, command(directory, "serve", NAME) as link:
        url, _, token = link.partition("/?token=")
        yield Target(Place(url, token, NAME))


@contextmanager
def gateway() -> Iterator[Target]:
    """`actscope gateway --upstream` in front of vLLM."""
    with short_directory() as directory, vllm_server(directory) as vllm, _before(vllm) as link:
        url, _, token = link.partition("/?token=")
        place = Place(url, token, vllm.configuration.model.name)
        await_scores(place)
        yield Target(place, f"{vllm.url}/v1")


def _before(vllm: Served) -> AbstractContextManager[str]:
    return command(vllm.runtime_directory, "gateway", "--upstream", f"{vllm.url}/v1")


SERVERS = {"serve": serve, "gateway": gateway}


@contextmanager
def short_directory() -> Iterator[Path]:
    """A private directory with a short path: a unix socket's may have 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="acts-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
