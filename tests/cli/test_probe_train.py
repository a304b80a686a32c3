"""`actscope probe train`: label files are judged before the model loads, and each label without a probe has its reason."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from support.hf.tiny import tiny
from typer.testing import CliRunner

from actscope import cli
from actscope.cli.app import app
from actscope.engines.hf import probe_training
from actscope.probes.train import Fit, fit


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("actscope.engines.hf.loading.load", fail)


def train(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error. An error of ours is its text."""
    result = CliRunner().invoke(app, ["probe", "train", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 2, result.stdout, result.stderr + str(result.exception)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("content", "arguments", "named"),
    [
        ("", [], "there is no text in it"),
        ("hello\n", [], "labels.jsonl:1: expected"),
        ('{"text": "a", "label": {"x": true}}\n', [], "labels.jsonl: label 'x': holds in all of the 1 texts"),
        ('{"text": "a", "label": {"x": true}}\n', ["--label", "joy"], "no text is labelled joy; the labels are x"),
        (None, [], "there is no such file"),
    ],
)
def test_a_label_file_is_refused_before_the_model_loads(
    content: str | None, arguments: list[str], named: str, tmp_path: Path
) -> None:
    data = tmp_path / "labels.jsonl"
    if content is not None:
        data.write_text(content)
    code, _, err = train(data, *arguments, "--out", tmp_path / "probes")
    assert code == 2 and named in err
    assert not (tmp_path / "probes").exists()


@pytest.mark.usefixtures("no_model")
def test_a_place_that_cannot_be_written_to_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"--out {tmp_path}/file/probes" in train("--out", tmp_path / "file" / "probes")[2]


WORDS = ("wolf", "tree", "lamb", "rock", "fire")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Texts in which "wolf" is labelled, and a label that never holds."""
    lines = []
    for number in range(120):
        words = [WORDS[(number * 7 + place * place) % 5] for place in range(3 + number % 6)] + [str(number)]
        text = " ".join(words)
        spans = [[at, at + 4] for at in range(len(text)) if text.startswith("wolf", at)]
        lines.append(json.dumps({"text": text, "spans": {"wolf": spans, "never": []}}))
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join([*lines, lines[3]]))
    return path


def test_each_label_without_a_probe_has_its_reason_and_a_probe_that_cannot_fire_is_not_written(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, model, out = tiny("llama"), tmp_path / "model", tmp_path / "probes"
    loaded.model.save_pretrained(model)
    loaded.tokenizer.save_pretrained(model)
    command = (labels, "--model", model, "--sites", "0,1", "--out", out)
    code, stdout, err = train(*command, "--json")
    assert code == 0, err
    assert [path.name for path in out.iterdir()] == ["wolf.safetensors"]
    assert (
        "1 lines repeat an earlier text" in err and "not written: never: does not hold in all of the 120 texts" in err
    )
    wolf, never = json.loads(stdout)
    assert (wolf["id"], wolf["kept"], wolf["reason"]) == ("wolf", True, None)
    assert (never["id"], never["kept"]) == ("never", False) and never["reason"].startswith("does not hold")

    (out / "wolf.safetensors").unlink()
    real = fit

    def dull(*arguments: object, **more: object) -> Fit:
        found: Fit = real(*arguments, **more)  # type: ignore[arg-type]
        return Fit(**{name: getattr(found, name) for name in Fit.__slots__} | {"recall": 0.0})

    monkeypatch.setattr(probe_training, "fit", dull)
    code, _, err = train(*command)
    assert code == 2 and not list(out.iterdir())
    assert "not written: wolf: recall 0: no held-out token reaches its threshold" in err
    assert "no probe was written" in err and "0.95" not in err


def test_on_a_full_disk_no_probe_is_written_and_the_reason_names_the_place(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an error without a path, and the probes before it were there."""
    loaded, model, out = tiny("llama"), tmp_path / "model", tmp_path / "probes"
    loaded.model.save_pretrained(model)
    loaded.tokenizer.save_pretrained(model)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("actscope.runtime.publish.write_all", full)
    code, _, err = train(labels, "--model", model, "--sites", "0", "--out", out)
    assert code == 2 and not list(out.iterdir())
    assert f"--out {out}: the 1 probes cannot be written (No space left on device), and none of them is there" in err


def test_an_interrupt_says_that_nothing_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("actscope.engines.hf.loading.load", interrupted)
    monkeypatch.setattr("sys.argv", ["actscope", "probe", "train", "--out", os.fspath(tmp_path / "probes")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert f"no probe has been written to {tmp_path}/probes; repeat the command" in capsys.readouterr().err
