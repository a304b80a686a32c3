"""nginx in front of the gateway: under a path prefix, with gzip and TLS, as teams put it on their network."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.clients import Target, short_directory
from support.gateway.conformance import MESSAGES
from support.vllm.bed import free_port
from support.waiting import until

import actscope.client

#: nginx's defaults but for what a file of a user has: TLS, gzip for JSON and streams, a prefix. Buffering is on, as by default.
CONFIGURATION = """
daemon off; master_process off; pid {here}/pid; error_log {here}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/f;
  uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;
  gzip on; gzip_min_length 20; gzip_proxied any; gzip_types application/json text/event-stream text/javascript text/css;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {here}/cert.pem; ssl_certificate_key {here}/key.pem;
    location /scope/ {{
      proxy_pass {upstream}/; proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_read_timeout 120s;
    }}
  }}
}}
"""


#: A stream that takes many times as long as it takes a test to look.
LONG: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 900, "n": 16, "stream": True, "ignore_eos": True}


@dataclass(frozen=True)
class Front:
    """The address behind nginx, and how its certificate is trusted."""

    url: str
    trust: ssl.SSLContext
    target: Target

    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.target.token}"}
        return httpx.Client(base_url=self.url, headers=headers, verify=self.trust, timeout=60, trust_env=False)

    def openai(self) -> openai.OpenAI:
        own: Any = openai.DefaultHttpxClient(verify=self.trust)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.target.token, max_retries=0, http_client=own)


@pytest.fixture(scope="module")
def front(target: Target) -> Iterator[Front]:
    with short_directory() as here:
        _certificate(here)
        port = free_port()
        text = CONFIGURATION.format(here=here, port=port, upstream=target.place.url)
        (here / "nginx.conf").write_text(text)
        environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        command = ["nginx", "-p", str(here), "-c", str(here / "nginx.conf"), "-e", str(here / "error.log")]
        process = subprocess.Popen(command, env=environment)
        front = Front(f"https://127.0.0.1:{port}/scope", ssl.create_default_context(cafile=here / "cert.pem"), target)
        try:
            until(lambda: _answers(front), what=f"nginx: {(here / 'error.log')}")
            yield front
        finally:
            process.terminate()
            process.wait(20)


def _certificate(here: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += [
        "-keyout",
        str(here / "key.pem"),
        "-out",
        str(here / "cert.pem"),
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)


def _answers(front: Front) -> bool:
    try:
        with front.client() as client:
            return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_openais_client_has_its_scores(front: Front) -> None:
    """Whole, streamed, and looked up by id, all below the prefix."""
    with front.openai() as plain:
        client = actscope.client.wrap(plain)
        ask: Any = {"model": front.target.model, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
        whole = client.chat.completions.create(**ask)
        stream = client.chat.completions.create(**ask, stream=True)
        tokens = list(stream.tokens())
        found = client.scores(whole.id)
    assert list(found) == list(whole.scores)
    assert [token.id for token in tokens] == [token.id for token in found]
    assert found.complete


def test_answers_are_compressed(front: Front) -> None:
    body = {"model": front.target.model, "messages": MESSAGES, "max_tokens": 12, "actscope": True}
    with front.client() as client:
        for stream in (False, True):
            answer = client.post("/v1/chat/completions", json=body | {"stream": stream})
            assert answer.headers["content-encoding"] == "gzip"
            assert '"actscope"' in answer.text


def test_a_stream_is_not_held_back(front: Front) -> None:
    """The first token is here, through gzip and TLS, while the request still runs."""
    body = LONG | {"model": front.target.model}
    with front.client() as client, front.target.place.client() as direct:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.headers["content-encoding"] == "gzip"
            lines = response.iter_lines()  # kept: an iterator that is collected closes the connection
            next(line for line in lines if '"content"' in line)
            path = f"/v1/actscope/requests/0_{response.headers['x-request-id']}"  # the first choice
            assert direct.get(path).json()["state"] == "running"
        until(lambda: direct.get(path).json()["state"] == "aborted", what="the end of a request whose client has left")


def test_events_are_not_held_back(front: Front) -> None:
    body = LONG | {"model": front.target.model}
    with front.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        path = f"/v1/actscope/requests/0_{response.headers['x-request-id']}"  # the first choice
        with client.stream("GET", f"{path}/events") as events:
            assert next(line for line in events.iter_lines() if line.startswith("event: "))
            assert client.get(path).json()["state"] == "running"
