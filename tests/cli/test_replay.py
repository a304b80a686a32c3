"""`actscope replay` from the command line: the page, the API, what it says, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.gateway.stage import Picture, Place
from support.recordings.made import row_of
from support.recordings.replayed import SITES, probe, record_by_hand, token_by_token
from support.ring.reading import segments_of
from support.servers import COMMAND
from support.waiting import interrupt, until

from actscope.probes import Probe, save_probe


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recorded")
    steps = [*token_by_token("first", 12), *token_by_token("second", 6, first_number=100)]
    return record_by_hand(directory / "run.acts", steps, texts=lambda ids: [f"<{i}>" for i in ids])


def folder(where: Path, *probes: Probe) -> str:
    for own in probes:
        save_probe(own, where / f"{own.id}.safetensors")
    return str(where)


def refused(*arguments: str, cwd: Path | None = None) -> str:
    """What is said on standard error by a command that ends with exit code 2."""
    done = subprocess.run([*COMMAND, "replay", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@contextmanager
def replaying(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, the link that it printed, and what it said up to its introduction's end."""
    command = [*COMMAND, "replay", *arguments, "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if "Ctrl-C stops it" in line:
                break
        else:
            raise AssertionError("actscope replay ended: " + "".join(said))
        try:
            yield process, next(line.split()[-1] for line in said if "/?token=" in line), said
        finally:
            interrupt(process)


def test_a_recording_is_shown_with_later_probes_and_stays_until_it_is_stopped(
    recording: Path, tmp_path: Path, runtime_directory: Path
) -> None:
    """The link opens the page at the first request; scores are those of the rows; Ctrl-C leaves nothing behind."""
    own, far = probe("mine"), probe("far", "layers.1.resid_post")
    with replaying(str(recording), "--probes", folder(tmp_path, own, far), "--speed", "0") as (process, link, said):
        told = "".join(said)
        assert "1 of 2 probes cannot be computed" in told
        assert "'far' reads layers.1.resid_post, which was not recorded" in told
        assert re.search(r"requests +first, second\n +probes +mine\n", told)
        assert process.stderr is not None
        assert any("has ended (18 tokens" in line for line in process.stderr)
        url, _, query = link.partition("/?token=")
        token, _, view = query.partition("&")
        with httpx.Client(trust_env=False) as browser:
            landed = browser.get(link, follow_redirects=True)
            assert str(landed.url) == f"{url}/?{view}" == f"{url}/?request=first"
            assert landed.status_code == 200
        assert len(segments_of(process.pid)) == 1
        with Place(url, token).client() as client:
            whole = Picture()
            answer = until(lambda: ended(client, "first"))
            whole.add({key: value for key, value in answer.items() if key != "state"})
            assert [one["request"] for one in client.get("/v1/actscope/requests").json()["requests"]] == [
                "second",
                "first",
            ]
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(30) in (0, 130)
        assert "Traceback" not in rest
    for position in range(12):
        expected = own.score(row_of("first", position, SITES[0])[None])[0]
        assert whole.cells[position, "mine"] == pytest.approx(expected, abs=1e-5)
    assert re.fullmatch(r"(<\d+>){12}", whole.text)
    assert list(runtime_directory.iterdir()) == []
    assert segments_of(process.pid) == []


def ended(client: httpx.Client, request: str) -> dict[str, object] | None:
    answer = client.get(f"/v1/actscope/requests/{request}")
    return answer.json() if answer.status_code == 200 and answer.json()["state"] == "done" else None


def test_other_commands_see_it_as_an_engine(recording: Path, tmp_path: Path) -> None:
    """`actscope probe add` while it plays, and `actscope watch`."""
    with replaying(str(recording), "--speed", "0", "--loop", "--request", "second") as (_, _, said):
        assert "probes    none" in "".join(said)
        path = folder(tmp_path, probe("late"))
        added = subprocess.run([*COMMAND, "probe", "add", f"{path}/late.safetensors"], capture_output=True, text=True)
        assert added.returncode == 0, added.stderr
        command = [*COMMAND, "watch", "--json", "--steps", "4"]
        watched = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert re.search(r'"request":"second~\d+"', watched.stdout)
    assert '"late":[' in watched.stdout


@pytest.mark.parametrize("arguments", [["--request", "third"], ["--speed", "-1"], ["--probes", "nowhere"]])
def test_what_cannot_be_played_is_one_clear_message(recording: Path, arguments: list[str]) -> None:
    said = refused(str(recording), *arguments)
    assert said.startswith("actscope: ")
    assert {"--request": "it has 2: first, second", "--speed": "speed -1.0", "--probes": "nowhere"}[
        arguments[0]
    ] in said


def test_a_folder_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in refused(str(tmp_path))


def test_probes_of_which_none_fits_are_refused_each_with_its_reason(recording: Path, tmp_path: Path) -> None:
    far = folder(tmp_path / "far", probe("a", "layers.1.resid_post"), probe("b", "layers.2.resid_post"))
    said = refused(str(recording), "--probes", far)
    assert "'a' reads layers.1" in said and "'b' reads layers.2" in said
    assert "none of them" in refused(str(recording), "--probes", folder(tmp_path / "wide", probe("wide", d=16)))


def test_a_probe_of_another_model_is_refused_unless_any_will_do(recording: Path, tmp_path: Path) -> None:
    other = folder(tmp_path, probe("other", model="someone/else"))
    said = refused(str(recording), "--probes", other)
    assert "made for model 'someone/else'; this is 'hand/made'" in said and "--any-model" in said
    with replaying(str(recording), "--probes", other, "--any-model") as (_, _, told):
        assert "probes    other" in "".join(told)


def test_probes_that_lie_beside_it_are_found_by_the_models_name(recording: Path, tmp_path: Path) -> None:
    """./probes/MODEL, as for a live engine; those of another revision are named and left out."""
    folder(tmp_path / "probes/hand/made", probe("near"), probe("old", revision="0"))
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with replaying(str(recording)) as (_, _, said):
            told = "".join(said)
    finally:
        os.chdir(here)
    assert "probes    near\n" in told
    assert "made for revision '0'; this is '1'" in told
