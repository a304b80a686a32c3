"""The number of files that a server may open, against the number of requests that it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300))
from actscope.serving.listening import uvicorn_config
from actscope.serving.settings import ServingSettings
logging.basicConfig()
uvicorn_config(None, ServingSettings(), int(sys.argv[1]))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("requests", "said"), [(150, ""), (151, "about 150 requests at once, not for 151")])
def test_the_limit_is_raised_and_a_limit_that_is_too_low_for_the_requests_is_told(requests: int, said: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "300\n"
    assert said in done.stderr and bool(said) == bool(done.stderr)
