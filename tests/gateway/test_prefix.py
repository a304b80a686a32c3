"""A real nginx that serves the gateway under a path: the link, the page and the API work there."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.gateway.stage import TOKEN, Stage
from support.waiting import until

from actscope.gateway.settings import STATIC

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")

_CONFIG = """
daemon off; pid {directory}/pid; error_log {directory}/error.log; worker_processes 1;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{
    listen 127.0.0.1:{port};
    location /some/path/ {{ proxy_pass {url}/; proxy_set_header Host $http_host; proxy_http_version 1.1; }}
  }}
}}
"""


@pytest.fixture
def address(stage: Stage, tmp_path: Path) -> Iterator[str]:
    """Where nginx serves the gateway."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = stage.gateway(up=False, allowed_hosts=[f"127.0.0.1:{port}"])
    config = tmp_path / "nginx.conf"
    config.write_text(_CONFIG.format(directory=tmp_path, port=port, url=place.url))
    with subprocess.Popen(["nginx", "-c", str(config), "-e", str(tmp_path / "error.log")]) as nginx:
        try:
            until(lambda: _listens(port))
            yield f"http://127.0.0.1:{port}/some/path/"
        finally:
            nginx.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def test_the_link_opens_the_page_under_a_path(address: str) -> None:
    """It stays under the path, its cookie opens the API there, and the page asks for nothing outside."""
    with httpx.Client(trust_env=False, follow_redirects=True, timeout=30) as browser:
        page = browser.get(f"{address}?token={TOKEN}&view=1")
        assert (page.status_code, str(page.url)) == (200, f"{address}?view=1")
        assert browser.get(f"{address}v1/actscope/info").status_code == 200
        if (STATIC / "index.html").is_file():
            wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
            assert wanted
            assert all(browser.get(httpx.URL(address).join(name)).status_code == 200 for name in wanted)
