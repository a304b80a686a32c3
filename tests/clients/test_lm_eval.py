"""lm-eval on a local task, without a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.clients import Target

from actscope.engines.builtin import model_path

_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{target}"
output_type: {kind}
{more}
"""
_CHOICES = 'doc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc}]'
_UNTIL = 'generation_kwargs: {until: ["."], max_gen_toks: 12, temperature: 0}\nmetric_list: [{metric: exact_match}]'
QUESTIONS = [
    {"question": f"{start}", "choices": [" fox", " the", " walked to the river"], "answer": i % 3}
    for i, start in enumerate(
        ["Once upon a time, a", "The sea was", "She looked at", "It was cold and", "He said that"]
    )
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "questions.json"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, kind, target, more in (
        ("written", "generate_until", "{{choices[answer]}}", _UNTIL),
        ("chosen", "multiple_choice", "{{answer}}", _CHOICES),
    ):
        (folder / f"{name}.yaml").write_text(_TASK.format(name=name, data=data, kind=kind, target=target, more=more))
    return folder


def evaluate(tasks: Path, url: str, token: str, model: str, task: str, to: Path) -> list[dict[str, Any]]:
    """What lm-eval got for each question; its log-likelihoods or its texts."""
    arguments = {
        "model": model, "base_url": url, "tokenizer": model_path(), "tokenizer_backend": "huggingface",
        "num_concurrent": 4, "max_retries": 1, "tokenized_requests": "False",
    }  # fmt: skip
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", task]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--include_path", str(tasks), "--output_path", str(to), "--log_samples"]
    environment = os.environ | {"OPENAI_API_KEY": token, "HF_HUB_OFFLINE": "1", "HF_HOME": str(to / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = to.rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    return [{"doc": s["doc_id"], "said": s["resps"]} for s in sorted(found, key=lambda s: int(s["doc_id"]))]


def test_texts(target: Target, tasks: Path, tmp_path: Path) -> None:
    """Every question is answered; through the gateway as by vLLM itself."""
    found = evaluate(tasks, f"{target.base_url}/completions", target.token, target.model, "written", tmp_path / "a")
    assert len(found) == len(QUESTIONS)
    assert all(sample["said"][0][0] for sample in found)
    if target.direct:
        url = f"{target.direct}/completions"
        assert found == evaluate(tasks, url, "none", target.model, "written", tmp_path / "b")


def test_likelihoods(target: Target, tasks: Path, tmp_path: Path) -> None:
    """Log-likelihoods of each choice (`echo` with `logprobs`) are those of vLLM itself."""
    if target.direct is None:
        pytest.skip("`actscope serve` has no log-probabilities of the prompt")
    url = f"{target.base_url}/completions"
    found = evaluate(tasks, url, target.token, target.model, "chosen", tmp_path / "a")
    direct = evaluate(tasks, f"{target.direct}/completions", "none", target.model, "chosen", tmp_path / "b")
    assert len(found) == len(QUESTIONS)
    for one, other in zip(found, direct, strict=True):
        for (mine, *_), (its, *_) in zip(one["said"], other["said"], strict=True):
            assert float(mine[0]) == pytest.approx(float(its[0]), abs=1e-3)
            assert mine[1] == its[1]
