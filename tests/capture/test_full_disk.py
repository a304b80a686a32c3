"""Full disks under a capture: a command ends and says what is kept; a user's own model goes on; nobody claims lost rows."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.hf.tiny import tiny
from support.recordings.made import frames_of, step_of

import actscope
from actscope.cli import capture as command
from actscope.cli.info import _text
from actscope.errors import RecordingPoisoned
from actscope.frames import Span, SpanFlag
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder

COMMAND = [sys.executable, "-m", "actscope"]
SITES = ("layers.0.resid_post", "layers.1.resid_post")


@contextmanager
def file_limit(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond this size (EFBIG), as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.timeout(300)
def test_the_command_ends_when_the_disk_is_full_says_what_is_kept_and_goes_on_later(tmp_path: Path) -> None:
    """It does not run the other prompts for nothing, and the resumed recording has every row of every prompt."""
    loaded: Any = tiny("llama")
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "p.txt").write_text("".join(f"prompt number {n}\n" for n in range(60)))
    to = tmp_path / "run.acts"
    arguments = [*COMMAND, "capture", str(tmp_path / "model"), str(tmp_path / "p.txt"), "--to", str(to), "--batch", "4"]
    arguments += ["--max-tokens", "8", "--codec", "none", "--flush-seconds", "0.01", "--block-bytes", "4k"]
    with file_limit(1 << 19):
        full = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    said = full.stderr.strip().splitlines()[-1].strip()
    assert said.startswith(f"{to} has ") and said.endswith(
        "of 60 prompts: make room, then repeat the command with --resume"
    )
    kept = int(said.split(" has ")[1].split()[0])
    assert 0 < kept < 60
    told = subprocess.run([*COMMAND, "info", str(to), "--json"], capture_output=True, text=True, timeout=60)
    found = json.loads(told.stdout)
    assert (found["complete"], found["rows"]) == (False, min(site["rows"] for site in found["sites"].values()))

    again = subprocess.run([*arguments, "--resume", "--json"], capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    whole = json.loads(again.stdout)
    assert (whole["run"], whole["skipped"], whole["requests"]) == (60 - kept, kept, 60)
    recording = actscope.open(to)
    assert all(recording.missing_rows(name) == 0 for name in recording.requests)
    assert len(recording.rows(recording.sites[0], "p000060")) == recording.request("p000060").computed


def test_a_users_own_model_goes_on_and_hears_of_the_loss_once_and_at_the_end(tmp_path: Path) -> None:
    """Also where the capture is never stopped: the interpreter's end then says it, in a line and without a traceback."""
    lines = (
        "import sys, time, torch, actscope",
        "model = torch.nn.Sequential(torch.nn.Linear(64, 64))",
        "settings = dict(codec='none', block_bytes=4096, flush_seconds=0.01)",
        "cap = actscope.capture(model, sites='0', to=sys.argv[1], **settings).start()",
        "end = time.monotonic() + 100",
        "while not cap.failure and time.monotonic() < end: out = model(torch.randn(2, 3, 64))",
        "assert cap.failure, 'the disk is not full'",
        "for _ in range(20): out = model(torch.randn(2, 3, 64))",
        "print('the model ran', tuple(out.shape))",
    )
    with file_limit(1 << 18):
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines), str(tmp_path / "r.acts")],
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert (done.returncode, done.stdout) == (0, "the model ran (2, 3, 64)\n"), done.stderr
    assert "Traceback" not in done.stderr
    once, end = [line for line in done.stderr.splitlines() if "r.acts" in line]
    assert "recording has stopped: writing failed" in once
    assert "stopped before its capture did: rows before" in end and "then resume it" in end


def test_a_users_own_error_does_not_hide_the_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = tiny("llama").model
    cap = actscope.capture(model, sites="2", to=tmp_path / "a", memory="64MiB")
    with caplog.at_level(logging.ERROR), pytest.raises(KeyError), cap, torch.no_grad():
        assert isinstance(cap._recorder, Recorder)
        cap._recorder._messages.fail(OSError("no space left on device"))
        model(torch.arange(4)[None])
        raise KeyError("the user's own")
    assert "rows before 0 are kept, later ones are lost" in caplog.records[-1].getMessage()


def recorded(path: Path, lost: tuple[int, ...], *, closed: bool) -> actscope.Recording:
    """A recording of two requests whose blocks at the second site were lost in these steps, as by a full disk."""
    options = PipelineOptions(block_bytes=4096, workers=1)
    recorder = Recorder.create(path, RecordingSpec(SITES, codec="none"), options)
    for number in range(1, 5):
        request = "a" if number < 3 else "b"
        step = step_of(number, [(request, 4 * ((number - 1) % 2), 4)])
        recorder.begin(step)
        for frame in frames_of(step, SITES):
            if number not in lost or frame.site != SITES[1]:
                recorder.put(step, frame.site, frame.rows)
        recorder.end(step)
        recorder.flush()
    if closed:
        recorder.close()
    found = actscope.open(path)
    if not closed:
        recorder.close()
    return found


@pytest.mark.parametrize("closed", [False, True])
def test_info_never_claims_rows_that_are_not_there(tmp_path: Path, closed: bool) -> None:
    """It said 100 % of what has labels, whether or not it has values."""
    found = recorded(tmp_path / "r", (2, 4), closed=closed)
    described = found.describe()
    assert (described["rows"], described["rows_missing"]) == (8, 8)
    assert described["tokens"] == {"computed": 8, "present": 16, "coverage": 0.5}
    assert [r["computed"] for r in described["requests"]] == [4, 4]
    assert (found.missing_rows("a"), found.summary()["tokens"], found.summary()["rows_missing"]) == (4, 8, 8)
    text = _text(described)
    assert "(50.0%)" in text and "8 rows have a label, and no values at some site" in text
    assert ("known positions" in text) == (not closed)
    whole = recorded(tmp_path / "whole", (), closed=closed)
    assert (
        whole.describe()["tokens"]["coverage"] == 1.0 and whole.whole.all() and "missing" not in _text(whole.describe())
    )


def test_a_site_without_any_row_counts_as_missing_only_while_the_recording_is_not_complete(tmp_path: Path) -> None:
    """A complete recording may have a site whose point was refused; one that stopped has lost it."""
    assert recorded(tmp_path / "open", (1, 2, 3, 4), closed=False).describe()["rows"] == 0
    assert recorded(tmp_path / "closed", (1, 2, 3, 4), closed=True).describe()["rows"] == 16
    empty = recorded(tmp_path / "none", (1, 2, 3, 4), closed=True)
    np.testing.assert_array_equal(empty.whole, np.ones(16, bool))


def test_nearly_everything_is_not_100_percent(tmp_path: Path) -> None:
    described = recorded(tmp_path / "r", (), closed=True).describe()
    described["tokens"] = {"computed": 99_999, "present": 100_000, "coverage": 0.99999}
    assert "(99.9%)" in _text(described)


def test_a_prompt_whose_rows_were_not_all_written_is_run_again(tmp_path: Path) -> None:
    """Its labels say that it has ended; its values do not."""
    with Recorder.create(tmp_path / "r", RecordingSpec(SITES, codec="none")) as recorder:
        step = step_of(1, [("a", 0, 4)])
        recorder.begin(step)
        recorder.put(step, SITES[0], frames_of(step, SITES)[0].rows)
        recorder.end(step)
        ended = step_of(2, [("b", 0, 4)])
        recorder.write(ended, frames_of(ended, SITES))
        over = tuple(Span(name, 4, 0, 0, n_prompt=4, flags=SpanFlag.END) for name in "ab")
        empty = step_of(3, [])
        recorder.write(type(empty)(3, 3000, over, empty.meta), frames_of(empty, SITES))
    prompts = [command_prompt(name) for name in "abc"]
    assert [p.id for p in command._missing(tmp_path / "r", prompts)] == ["a", "c"]


def command_prompt(name: str) -> Any:
    from actscope.capture.prompts import Prompt

    return Prompt(name, name)


def test_flushing_to_a_full_disk_is_the_recordings_own_error(tmp_path: Path) -> None:
    """The calls that promise rows on disk raise; the forward pass does not."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    cap = actscope.capture(model, sites="0", to=tmp_path / "r", codec="none", block_bytes=4096)
    with file_limit(1 << 17), pytest.raises(RecordingPoisoned, match="writing failed"), cap:
        while cap.failure is None:
            model(torch.randn(8, 4, 64))
            cap.flush()
