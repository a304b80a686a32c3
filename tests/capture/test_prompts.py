"""Prompts from files, and `actscope capture`: what was asked for is recorded, whole, and only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from support.hf.tiny import tiny
from typer.testing import CliRunner

import actscope
from actscope.capture.prompts import Prompt, read_prompts, run_prompts
from actscope.cli import capture as command
from actscope.errors import ActscopeError, SettingsError

_POST = "layers.2.resid_post"


@pytest.fixture
def loaded() -> Any:
    return tiny("llama")


@pytest.fixture
def saved(loaded: Any, tmp_path: Path) -> Path:
    """The tiny model as a directory."""
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: object, stdin: str | None = None) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command.capture)
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_prompts_are_lines_or_json_lines() -> None:
    assert read_prompts(["one\n", "\n", "two"]) == [Prompt("p000001", "one"), Prompt("p000003", "two")]
    lines = ['{"id": "a", "prompt": "x"}', '{"text": "y"}']
    assert read_prompts(lines) == [Prompt("a", "x"), Prompt("p000002", "y")]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "no prompt"),
        (['{"id": "a", "prompt": "x"}', "{"], "f:2"),
        (['{"prompt": 3}'], "f:1"),
        (['{"id": "a", "text": "x"}', '{"id": "a", "text": "y"}'], "'a' comes twice"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(lines: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        read_prompts(lines, "f")


def test_batches_of_prompts_give_the_answers_that_each_gives_alone(loaded: Any, tmp_path: Path) -> None:
    prompts = [Prompt("a", "hello"), Prompt("b", "a much longer prompt than the first"), Prompt("c", "x")]
    cap = actscope.capture(loaded.model, sites="2", to=tmp_path / "r", memory="64MiB")
    done: list[tuple[int, int]] = []
    with cap:
        run_prompts(loaded, prompts, cap, max_tokens=6, batch=2, progress=lambda n, total: done.append((n, total)))
    assert done == [(2, 3), (3, 3)]
    recording = actscope.open(tmp_path / "r")
    last = {token.request: token for token in recording.recorded_tokens()}
    for prompt in prompts:
        ids = loaded.tokenizer(prompt.text)["input_ids"]
        alone = loaded.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=257)[0]
        labels = recording.rows(_POST, request=prompt.id).labels
        labels = labels[labels["position"] < last[prompt.id].position]
        assert [*labels["token_id"].tolist(), last[prompt.id].token_id] == alone.tolist()


def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(loaded: Any, tmp_path: Path) -> None:
    cap = actscope.capture(loaded.model, sites="2", to=tmp_path / "r", memory="64MiB")
    with cap, pytest.raises(SettingsError, match="prompt 'long' has 600 tokens"):
        run_prompts(
            loaded,
            [Prompt("a", "x"), Prompt("long", "y" * 600)],
            cap,
            max_tokens=2,
            batch=1,
            progress=lambda n, total: None,
        )
    assert cap.stats().passes == 0


def test_the_command_records_and_resumes(saved: Path, tmp_path: Path) -> None:
    """Only prompts that the recording lacks are run again."""
    (tmp_path / "p.txt").write_text("hello\nthere\n")
    to = tmp_path / "run.acts"
    code, out = run(saved, tmp_path / "p.txt", "--to", to, "--max-tokens", 4, "--sites", "1,2", "--json")
    first = json.loads(out)
    assert code == 0
    assert (first["run"], first["requests"], first["sites"], first["complete"]) == (2, 2, 2, True)
    assert first["tokens"] == 2 * (5 + 3)
    assert first["ratio_source"] > 0
    (tmp_path / "p.txt").write_text("hello\nthere\nworld\n")
    resume = (saved, tmp_path / "p.txt", "--to", to, "--max-tokens", 4, "--sites", "1,2", "--resume", "--json")
    second, third = (json.loads(run(*resume)[1]) for _ in range(2))
    assert (second["run"], second["skipped"], second["requests"]) == (1, 2, 3)
    assert (third["run"], third["skipped"], third["requests"]) == (0, 3, 3)
    assert "h" in actscope.open(to).texts.values()


def test_the_command_only_reads_where_nothing_is_to_be_generated(saved: Path, tmp_path: Path) -> None:
    code, out = run(
        saved, "-", "--to", tmp_path / "r", "--max-tokens", 0, "--granularity", "sampled:last=1", stdin="abc\nde\n"
    )
    assert code == 0
    assert "2 tokens of 2 requests at 4 sites" in out
    recording = actscope.open(tmp_path / "r")
    assert recording.rows(_POST, request="p000001").labels["position"].tolist() == [2]


def test_a_request_that_was_interrupted_is_run_again(loaded: Any, tmp_path: Path) -> None:
    """A request that an exception interrupted has ended and is incomplete."""

    def fail(*_: Any) -> None:
        if loaded.model.passes_left == 0:
            raise KeyboardInterrupt
        loaded.model.passes_left -= 1

    loaded.model.passes_left = 3
    handle = loaded.model.register_forward_pre_hook(fail)
    prompts = [Prompt("a", "hello"), Prompt("b", "there")]
    cap = actscope.capture(loaded.model, sites="2", to=tmp_path / "r", memory="64MiB")
    with pytest.raises(KeyboardInterrupt), cap:
        run_prompts(
            loaded,
            prompts,
            cap,
            max_tokens=3,
            batch=1,
            progress=lambda n, total: setattr(loaded.model, "passes_left", 2),
        )
    handle.remove()
    recording = actscope.open(tmp_path / "r")
    assert (recording.request("a").ended, recording.request("a").aborted) == (True, False)
    assert recording.request("b").aborted
    assert recording.complete
    assert command._missing(tmp_path / "r", prompts) == prompts[1:]


def test_a_preset_that_does_not_exist_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ActscopeError, match="there are fast_capture"):
        run("no/such-model", "-", "--to", tmp_path / "r", "--preset", "fastest", stdin="x")
