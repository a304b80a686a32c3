"""Prompts from files, and `actscope capture`: what was asked for is recorded, whole, and only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from support.hf.tiny import tiny
from typer.testing import CliRunner, Result

import actscope
from actscope.capture.prompts import Prompt, read_prompts, run_prompts
from actscope.cli import capture as command
from actscope.errors import ActscopeError, CodecError, SettingsError

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
    result = invoke(*arguments, stdin=stdin)
    return result.exit_code, result.stdout


def invoke(*arguments: object, stdin: str | None = None) -> Result:
    app = typer.Typer()
    app.command()(command.capture)
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


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
    code, out = run(saved, tmp_path / "p.txt", "--to", to, "--max-tokens", 4, "--sites", "1,2", "--no-chat", "--json")
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
    raw = (saved, "-", "--to", tmp_path / "r", "--max-tokens", 0, "--granularity", "sampled:last=1", "--no-chat")
    code, out = run(*raw, stdin="abc\nde\n")
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


def prompt_of(to: Path, request: str) -> str:
    """Text of the prompt that the model read."""
    recording = actscope.open(to)
    rows = recording.tokens(request)[: recording.request(request).n_prompt]
    return "".join(row.text or "" for row in rows)


def test_prompts_are_sent_as_chats_where_the_model_has_a_template_and_the_output_says_so(
    saved: Path, tmp_path: Path
) -> None:
    """Sent raw, a chat model answers a prompt with one token."""
    to = tmp_path / "chat"
    result = invoke(saved, "-", "--to", to, "--max-tokens", 2, "--sites", "2", stdin="hello\n")
    assert "prompts are sent as chat messages, by the model's chat template (--no-chat: as they are)" in result.stderr
    assert "prompts sent as chat messages" in result.stdout
    assert prompt_of(to, "p000001") == "<s>user: hello\n"
    result = invoke(
        saved, "-", "--to", tmp_path / "raw", "--max-tokens", 2, "--sites", "2", "--no-chat", stdin="hello\n"
    )
    assert "prompts are sent as they are" in result.stderr and "prompts sent as texts" in result.stdout
    assert prompt_of(tmp_path / "raw", "p000001") == "hello"


def test_conversations_are_rendered_whole_and_refused_as_texts(saved: Path, tmp_path: Path) -> None:
    line = '{"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
    code, out = run(saved, "-", "--to", tmp_path / "r", "--max-tokens", 0, "--sites", "2", "--json", stdin=line)
    assert code == 0 and json.loads(out)["chat"] is True
    assert prompt_of(tmp_path / "r", "a") == "<s>user: hi\n<s>assistant: ho\n"
    with pytest.raises(SettingsError, match="'a' has messages, which need the model's chat template"):
        run(saved, "-", "--to", tmp_path / "raw", "--no-chat", "--sites", "2", stdin=line)
    for wrong in ('{"messages": []}', '{"messages": [{"role": "user"}]}', '{"messages": "x"}', '{"messages": [3]}'):
        with pytest.raises(SettingsError, match=r"f:1: messages: expected ..\"role\": \"user\""):
            read_prompts([wrong], "f")


def test_a_continued_recording_stays_what_it_was(saved: Path, tmp_path: Path) -> None:
    """Raw texts are never appended to chats, nor chats to texts, which recordings of earlier versions have."""
    for flag, chat in (("--chat", True), ("--no-chat", False)):
        to = tmp_path / flag[2:]
        run(saved, "-", "--to", to, "--max-tokens", 0, "--sites", "2", flag, stdin="one\n")
        more = (saved, "-", "--to", to, "--max-tokens", 0, "--sites", "2", "--resume")
        code, out = run(*more, "--json", stdin="one\ntwo\n")
        assert code == 0 and json.loads(out)["chat"] is chat
        assert prompt_of(to, "p000002") == ("<s>user: two\n" if chat else "two")
        other = "--no-chat" if chat else "--chat"
        with pytest.raises(SettingsError, match=f"the recording was made with {flag}; give that, or leave it out"):
            run(*more, other, stdin="one\ntwo\nthree\n")


def test_a_model_without_a_template_gets_texts_and_refuses_chat(loaded: Any, saved: Path, tmp_path: Path) -> None:
    (saved / "chat_template.jinja").unlink()
    assert "prompts sent as texts" in run(saved, "-", "--to", tmp_path / "r", "--sites", "2", stdin="x\n")[1]
    with pytest.raises(SettingsError, match="has no chat template; leave it out, and texts are sent as they are"):
        run(saved, "-", "--to", tmp_path / "s", "--sites", "2", "--chat", stdin="x\n")
    assert not (tmp_path / "s").exists()


def test_a_template_that_refuses_a_prompt_is_told_before_anything_runs(saved: Path, tmp_path: Path) -> None:
    (saved / "chat_template.jinja").write_text("{{ raise_exception('only in Latin') }}")
    with pytest.raises(SettingsError, match=r"'p000001': the chat template .* refuses it: only in Latin; --no-chat"):
        run(saved, "-", "--to", tmp_path / "r", "--sites", "2", stdin="x\n")


def test_a_codec_that_cannot_encode_the_rows_is_refused_before_the_model_runs(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"layers\.2\.resid_post: codec 'svd:65': rows are 64 wide"):
        run(saved, "-", "--to", tmp_path / "r", "--sites", "2", "--codec", "svd:65", stdin="x\n")
    assert not (tmp_path / "r").exists()


def test_svd_says_how_long_it_collects(saved: Path, tmp_path: Path) -> None:
    result = invoke(saved, "-", "--to", tmp_path / "r", "--sites", "2", "--codec", "svd:8", stdin="x\n")
    assert (
        "codec svd:8: the first 2,048 rows of each site are stored losslessly, then its basis is fitted"
        in result.stderr
    )
    assert "svd:8 encoded nothing at layers.2.resid_post" in result.stderr
