"""Worker processes and Ray actors produce the same bytes as this process, also when one is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.harvest.cluster import RayCluster
from support.harvest.workers import SETTINGS, crew, quiet, settings
from support.waiting import until

from actscope.errors import EngineError, MissingExtra, SettingsError
from actscope.harvest.driver import harvest
from actscope.harvest.storage import open_storage
from actscope.harvest.workers.local import LocalCrew
from actscope.harvest.workers.messages import WorkerJob, error_of, raised
from actscope.harvest.workers.ray import _size

#: More and smaller units, so that there is a middle.
MANY = {"texts": 60, "unit_texts": 2}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one worker in this process comes to, undisturbed."""
    out = tmp_path_factory.mktemp("whole")
    harvest(open_storage(str(out)), crew(out, **MANY), quiet)
    return tree(out)


def command(out: Path, *more: str) -> list[str]:
    """`actscope harvest` of the same plan."""
    given = {**SETTINGS, **MANY}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "actscope", "harvest", "--out", str(out), *options, "--json", *more]


def kill_one(when: Callable[[], bool], whom: Callable[[], list[int]]) -> threading.Thread:
    """Kill one of `whom` with SIGKILL, as soon as `when`."""

    def wait_and_kill() -> None:
        until(when, 120)
        os.kill(whom()[0], signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def committed(out: Path) -> int:
    return len(list((out / "receipts").glob("*"))) if (out / "receipts").is_dir() else 0


def test_a_process_that_is_killed_in_the_middle_loses_and_doubles_nothing(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Two processes, one killed by SIGKILL after some units: the place holds the same bytes as if nothing had happened."""
    workers = LocalCrew(WorkerJob(settings=settings(**MANY), out=str(tmp_path)), 2)
    killer = kill_one(lambda: committed(tmp_path) >= 4, lambda: workers.pids)
    report = harvest(open_storage(str(tmp_path)), workers, quiet)
    killer.join()
    assert tree(tmp_path) == whole
    assert report.workers_lost <= 1 and workers.pids == []


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """SIGINT in the middle: exit code 130, a word on how to go on, no process left; then the command finishes the work."""
    out = tmp_path / "rows"
    first = subprocess.Popen(command(out), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: committed(out) >= 3 or first.poll() is not None, 60)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130 and "repeat the command to continue" in said and "Traceback" not in said
    assert list((out / "owners").iterdir()) == [] and not (out / "manifest.json").exists()
    before = committed(out)
    done = subprocess.run(command(out), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["units_here"] == 30 - before < 30
    assert tree(out) == whole


def test_what_goes_wrong_at_a_worker_is_raised_here(tmp_path: Path) -> None:
    """Errors of ours cross with their class and words, others as an EngineError that names them."""
    with pytest.raises((EngineError, SettingsError), match="nowhere"):
        harvest(open_storage(str(tmp_path)), crew(tmp_path, model=str(tmp_path / "nowhere")), quiet)
    crossed = [error_of(raised(error)) for error in (SettingsError("a"), MissingExtra("feed", "x"), KeyError("b"))]
    assert [str(error) for error in crossed[::2]] == ["a", "KeyError: 'b'"] and "actscope[feed]" in str(crossed[1])
    assert isinstance(crossed[0], SettingsError) and isinstance(crossed[2], EngineError)


@pytest.mark.timeout(240)
def test_a_harvest_on_a_cluster_is_the_local_one_also_when_a_worker_is_killed(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Three raylets, actors on two of them, one killed by SIGKILL in the middle: the same shards, receipts, plan and manifest."""
    out = tmp_path / "rows"
    with RayCluster(3, {}) as cluster:
        killer = kill_one(lambda: committed(out) >= 3, cluster.workers)
        done = subprocess.run(
            command(out, "--engine", "ray", "--workers", "2", "--ray-address", cluster.address),
            env=cluster.environment,
            capture_output=True,
            text=True,
        )
        killer.join()
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
    assert report["workers_lost"] == 1 and report["units_here"] == 30
    assert tree(out) == whole
    assert "Traceback" not in done.stderr


def test_a_cluster_without_room_for_a_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker needs and what there is are named; else there are as many workers as were asked for and fit."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 16.0})
    with pytest.raises(SettingsError, match="needs 1 CPU, 1 GPU; the whole Ray cluster has 16 CPU, 0 GPU"):
        _size(0, {"CPU": 1.0, "GPU": 1.0})
    assert [_size(asked, {"CPU": 3.0, "GPU": 0.0}) for asked in (0, 2, 9)] == [5, 2, 5]
