"""A real `vllm serve` with actscope's plugin, and a gateway in front of it: each a process of its own."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import msgspec

from actscope.bench.support.samples import Progress
from actscope.engines.builtin import NAME, model_path, probes_path
from actscope.errors import UpstreamError

START_S = 300.0


@contextmanager
def vllm_server(
    directory: Path, more: Mapping[str, str] | None = None, *, plugin: bool = True
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run vLLM's server on the built-in model; yield its address and process. It is not ready yet.

    Args:
        directory: Empty directory for its runtime directory and its log.
        more: Environment variables of the plugin.
        plugin: Load actscope's plugin.
    """
    port = _free_port()
    run_directory = directory / "run"
    run_directory.mkdir(mode=0o700)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path()), "--served-model-name", NAME,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "256",
        "--max-num-batched-tokens", "1024", "--kv-cache-memory-bytes", str(256 << 20), "--disable-uvicorn-access-log",
    ]  # fmt: skip
    environment = os.environ | {
        "ACTSCOPE_RUNTIME_DIR": str(run_directory), "ACTSCOPE_PROBES": str(probes_path()), "ACTSCOPE_MODEL_NAME": NAME,
        "VLLM_LOGGING_LEVEL": "ERROR", **(more or {}),
    }  # fmt: skip
    if not plugin:
        environment["VLLM_PLUGINS"] = ""
    with (directory / "vllm.log").open("w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}", child
    finally:
        child.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


@contextmanager
def vllm_gateway(
    engine: str, directory: Path, progress: Progress
) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """Run the gateway in front of vLLM; yield its address, its token and its process when vLLM has scores."""
    token, port = secrets.token_urlsafe(16), _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "actscope", "gateway", "--upstream", f"{engine}/v1", "--port", str(port)]
    environment = os.environ | {"ACTSCOPE_TOKEN": token, "ACTSCOPE_RUNTIME_DIR": str(directory / "run")}
    with (
        (directory / "gateway.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as child,
    ):
        try:
            wait_until(_has_scores, url, token, child, directory, progress)
            yield url, token, child
        finally:
            child.terminate()


def bearer(token: str) -> dict[str, str]:
    """Return the header that brings a token along."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def _has_scores(client: httpx.Client) -> bool:
    return msgspec.json.decode(client.get("/v1/actscope/info").content)["ring"] is not None


def serves(client: httpx.Client) -> bool:
    """Return whether vLLM answers."""
    return client.get("/v1/models").status_code == 200


def wait_until(
    ready: Callable[[httpx.Client], bool], url: str, token: str, child: subprocess.Popen[bytes], directory: Path,
    progress: Progress,
) -> None:  # fmt: skip
    """Wait until a server is ready; raises UpstreamError with its log if it is not, or ends."""
    begin, headers = time.monotonic(), bearer(token)
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
        while time.monotonic() < begin + START_S and child.poll() is None:
            with suppress(httpx.TransportError, msgspec.DecodeError, KeyError):
                if ready(client):
                    return
            progress(f"starting vLLM: {time.monotonic() - begin:.0f} s")
            time.sleep(0.5)  # neither says when it is ready: poll
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(directory.glob("*.log")))
    raise UpstreamError(f"vLLM did not come up within {START_S:.0f} s:\n{logs}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
