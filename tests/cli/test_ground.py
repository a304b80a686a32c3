"""Commands on bad ground: no home, no directory for temporary files, a read-only disk: they work, or name what to set."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.recordings.made import frames_of, step_of
from support.waiting import can_unshare

from actscope import cli
from actscope.cli.common.findings import Finding
from actscope.cli.doctor import ground
from actscope.cli.doctor.ground import guarded, guarded_all
from actscope.errors import RingError, SettingsError
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder
from actscope.ring import discovery
from actscope.ring.host import RingSpec, RingWriter
from actscope.runtime.cache import give_matplotlib_a_cache

NOBODY = 54321  # a user id that has no entry in /etc/passwd
SITE = "layers.0.resid_post"


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fail: Callable[[], None]) -> str:
    """What the command line says when a command fails like this."""
    monkeypatch.setattr("actscope.cli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: make room on the disk"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x: No space left on device: make room on the disk"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system: choose a place that can be written to"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "set TMPDIR"),
        (PermissionError(13, "Permission denied", "/home/of/.cache/huggingface/hub"), "set HF_HOME"),
        (PermissionError(13, "Permission denied", "/home/of/.cache/torch"), "set HOME"),
        (FileNotFoundError(2, "No such file or directory", "/home/of/data.txt"), "No such file or directory"),
    ],
)
def test_an_error_of_the_disk_is_one_line_that_says_what_to_do(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one without a path, which was a traceback."""
    monkeypatch.setenv("HOME", "/home/of")
    monkeypatch.delenv("HF_HOME", raising=False)

    def fail() -> None:
        raise error

    err = told(monkeypatch, capsys, fail)
    assert err.startswith("actscope: ") and said in err and err.count("\n") == 1


def test_a_current_directory_that_was_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current directory has been removed" in told(monkeypatch, capsys, lambda: print(Path.cwd()))


def test_an_interrupt_while_the_command_line_is_loaded_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "actscope.cli.app", raising=False)
    monkeypatch.setattr("builtins.__import__", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


def test_a_check_of_the_doctor_that_fails_is_a_finding_and_the_others_run() -> None:
    def _shared_memory() -> Finding:
        raise ValueError("odd")

    def several() -> object:
        yield Finding("one", True, "fine")
        raise SettingsError("two is broken")

    found = guarded(_shared_memory)
    assert (found.what, found.ok, found.found) == ("shared memory", False, "could not be checked: ValueError: odd")
    first, second = guarded_all(several)  # type: ignore[arg-type]
    assert first.ok and (second.ok, second.found) == (False, "two is broken")


def test_the_doctor_names_the_variable_of_each_directory_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path / "file"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    found = {finding.what: finding for finding in (check() for check in ground.CHECKS)}
    assert not found["runtime folder"].ok and "ACTSCOPE_RUNTIME_DIR" in found["runtime folder"].remedy
    assert found["cache"].ok and "XDG_CACHE_HOME" in found["cache"].remedy
    assert not found["model cache"].ok and "HF_HOME" in found["model cache"].remedy
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert ground.hub().ok, "nothing is loaded from the hub then"


def test_the_doctor_tells_one_cause_once() -> None:
    """A runtime directory of another user was four NO lines."""
    why = "/run/x: expected owner 1, found 0"
    made = [
        Finding("runtime folder", False, why, "set it"),
        Finding("engines", False, why),
        Finding("cache", True, "/c"),
    ]
    first, second, third = ground.told_once(made)
    assert first == made[0] and third == made[2]
    assert (second.what, second.ok, second.found) == ("engines", True, "not checked: see runtime folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a directory to another user")
@pytest.mark.parametrize(
    "command", ["gateway --port 0", "watch", "demo --once hi", "probe list", "feed --config test --port 0"]
)
def test_another_users_runtime_directory_is_one_line_before_anything_is_loaded(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gateway waited in it for ever; the demo said it twice, once from its engine."""
    os.chown(tmp_path, NOBODY, NOBODY)
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("actscope.engines.hf.spawn.subprocess.Popen", None)
    monkeypatch.setattr("sys.argv", ["actscope", *command.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "set ACTSCOPE_RUNTIME_DIR" in err and len(err.splitlines()) == 1


def test_without_shared_memory_the_sweep_of_an_engine_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without /dev/shm was a traceback of the engine; now creating the ring says what is missing."""
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(tmp_path / "run"))
    for module in ("discovery", "segment"):
        monkeypatch.setattr(f"actscope.ring.{module}.SHM_DIR", tmp_path / "absent")
    assert discovery.sweep() == 0
    with pytest.raises(RingError, match=r"scores need .*absent: mount a tmpfs there"):
        RingWriter.create(RingSpec(16, 8, 4, 16))


def test_matplotlib_gets_a_directory_only_where_its_own_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logged two lines about a home directory that is not there, in its own words."""
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # restored at the end, also where the call sets it
    monkeypatch.setenv("HOME", str(tmp_path))
    give_matplotlib_a_cache()
    assert not os.environ["MPLCONFIGDIR"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    give_matplotlib_a_cache()
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / f"actscope-cache-{os.geteuid()}" / "matplotlib")


@pytest.fixture
def recorded() -> Iterator[Path]:
    """A small recording that everyone may read, not below pytest's own directory, which is closed to others."""
    with tempfile.TemporaryDirectory(prefix="acts-", dir="/tmp") as name:
        path = Path(name) / "run.acts"
        with Recorder.create(path, RecordingSpec((SITE,), codec="none")) as recorder:
            step = step_of(1, [("a", 0, 4)])
            recorder.write(step, frames_of(step, (SITE,)))
        for place in (Path(name), path, *path.iterdir()):
            place.chmod(0o755 if place.is_dir() else 0o644)
        yield path


AS = {"root": [], "nobody": ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]}


@pytest.mark.skipif(os.geteuid() != 0 or not can_unshare("--mount"), reason="needs root, and leave to mount")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("user", list(AS))
def test_where_nothing_can_be_written_things_can_be_looked_at_and_the_doctor_says_what_is_missing(
    recorded: Path, user: str
) -> None:
    """All file systems are read-only but /proc and /dev: no home, no /tmp, no /dev/shm. A user with a name, and one without."""
    if subprocess.run([*AS[user], sys.executable, "-c", ""], cwd="/", capture_output=True).returncode:
        pytest.skip("another user cannot run this Python")
    script = recorded.parent / "run.sh"
    script.write_text(
        "mount --make-rprivate / || exit 9\n"
        "for place in / /tmp /dev/shm /var/tmp; do\n"
        '    mount --bind "$place" "$place" && mount -o remount,bind,ro "$place"\n'
        "done\n"
        'cd / && exec "$@"\n'
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--mount", "sh", str(script), *AS[user], sys.executable, "-m", "actscope", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)

    found = run("info", str(recorded), "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["rows"] == 4, found.stderr
    doctor = run("doctor", "--json")
    assert doctor.returncode == 1 and "Traceback" not in doctor.stderr, doctor.stderr
    findings = {finding["what"]: finding for finding in json.loads(doctor.stdout)}
    for what, variable in (
        ("runtime folder", "ACTSCOPE_RUNTIME_DIR"),
        ("cache", "XDG_CACHE_HOME"),
        ("temporary files", "TMPDIR"),
    ):
        assert not findings[what]["ok"] and variable in findings[what]["remedy"], findings[what]
    for arguments, variable in (
        (["watch"], "ACTSCOPE_RUNTIME_DIR"),
        (["replay", str(recorded), "--no-browser"], "ACTSCOPE_RUNTIME_DIR"),
        (["export", str(recorded), "--to", "/out"], "/out"),
    ):
        refused = run(*arguments)
        assert refused.returncode in (2, 3) and "Traceback" not in refused.stderr, refused.stderr
        assert variable in refused.stderr
