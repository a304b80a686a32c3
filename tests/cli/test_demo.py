"""The main job from the command line: the same path as the page, through engine, ring and gateway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import numpy as np
import pytest
import torch
import typer
from support.servers import COMMAND, serving
from typer.testing import CliRunner

from actscope.cli.app import app
from actscope.engines.builtin import NAME, probes_path
from actscope.engines.hf.loading import load
from actscope.probes import load_probes


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=180, **options
    )
    return done


def test_demo_once_prints_every_tokens_scores_and_they_are_those_of_a_plain_run() -> None:
    """All positions, in order; each score is the probe on transformers' own hidden state; the last is never computed."""
    done = run("demo", "--once", "Tell me about a fox in the snow", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "fox" in answer["answer"]
    tokens = answer["tokens"]
    assert [t["position"] for t in tokens] == list(range(answer["present"]))
    assert answer["computed"] == answer["present"] - 1
    loaded, probes = load(NAME), {p.id: p for p in load_probes(probes_path())}
    assert len(probes) >= 8
    assert len({p.info.site for p in probes.values()}) >= 3
    with torch.no_grad():
        ids = torch.tensor([[t["id"] for t in tokens]])
        hidden = loaded.model(ids, output_hidden_states=True).hidden_states
    special = set(loaded.tokenizer.all_special_ids)
    assert {p["id"] for p in answer["probes"]} == set(probes)
    checked = 0
    for probe in probes.values():
        assert probe.info.layer is not None
        if probe.info.layer == loaded.n_layers - 1:
            continue  # output_hidden_states has this one only after the final norm
        expected = probe.score(hidden[probe.info.layer + 1][0].numpy())
        for position, token in enumerate(tokens):
            state = "n" if position == len(tokens) - 1 else "m" if token["id"] in special else "c"
            assert token["states"][probe.id] == state
            if state == "c":
                assert token["scores"][probe.id] == pytest.approx(expected[position], abs=1e-4)
                checked += 1
            else:
                assert token["scores"][probe.id] is None
    assert checked > 100


def test_an_unknown_model_is_one_clear_message_and_exit_code_2() -> None:
    done = run("demo", "--model", "no/such-model-here", "--once", "hi", env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert "no/such-model-here" in done.stderr
    assert "Traceback" not in done.stderr


def every_command(group: Any, *path: str) -> list[list[str]]:
    """The words that call each command, those of groups included."""
    return [
        words
        for name, command in group.commands.items()
        for words in (every_command(command, *path, name) if hasattr(command, "commands") else [[*path, name]])
    ]


COMMANDS = every_command(typer.main.get_command(app))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_an_example(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "Usage:" in done.output
    assert "Example:" in done.output


def test_an_unknown_bench_is_named_with_those_that_exist() -> None:
    done = run("bench", "nothing")
    assert done.returncode == 2
    assert "gateway" in done.stderr


def compact_line(step: dict[str, Any]) -> str:
    """The line that the older sidecar printed for a step: the rows that are not all 0, and the mean of their scores."""
    tables = [np.array(list(span["scores"].values())).T for span in step["spans"] if span["token_ids"]]
    rows = np.concatenate(tables) if tables else np.empty((0, 1))
    active = rows[(rows != 0).any(axis=1)]
    return f"[{step['step']}] Batch: {len(active)} | Avg Score: {active.mean():.4f}" if len(active) else ""


def test_serve_is_followed_by_watch_and_leaves_nothing_behind() -> None:
    """watch, in another process, sees the steps of a request with the probes' scores; Ctrl-C ends everything cleanly."""
    with serving() as running:
        arguments = ["watch", "--json", "--steps", "10", "--from-oldest"]
        watch = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True, env=running.environment)
        body = {
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 12,
            "temperature": 0,
            "ignore_eos": True,
        }
        with running.place.client() as client:
            answer = client.post("/v1/chat/completions", json=body).json()
        out, _ = watch.communicate(timeout=60)
        steps = [json.loads(line) for line in out.splitlines()]
        command = [*COMMAND, "watch", "--compact", "--steps", "9", "--from-oldest"]
        compact = subprocess.run(command, capture_output=True, text=True, env=running.environment, timeout=60).stdout
        running.process.send_signal(signal.SIGINT)
        running.process.wait(30)
        assert list(running.directory.iterdir()) == []
    spans = [span for step in steps for span in step["spans"]]
    assert {span["request"] for span in spans} == {answer["id"]}
    positions = [span["first_position"] + i for span in spans for i in range(len(span["token_ids"]))]
    assert positions == list(range(len(positions)))
    scores = [v for span in spans for values in span["scores"].values() for v in values]
    assert len(scores) >= 8 * len(positions)
    assert np.isfinite(scores).all()
    lines = [compact_line(step) for step in steps]
    assert compact.splitlines() == [line for line in lines if line][:9]


def test_watch_waits_for_an_engine_that_is_not_up_yet() -> None:
    child = subprocess.Popen([*COMMAND, "watch"], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    assert "waiting" in child.stderr.readline()
    assert child.poll() is None
    child.kill()
    child.wait()
    child.stderr.close()
