"""The harvest as a whole: resuming, sharing, and what happens when something goes away."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support.harvest.s3 import ENVIRONMENT, S3Server
from support.harvest.workers import crew, quiet

from actscope.errors import EngineError, HarvestDamaged, HarvestError, SettingsError
from actscope.harvest import layout
from actscope.harvest.driver import harvest, held_plan
from actscope.harvest.storage import Storage, objects, open_storage


def contents(storage: Storage) -> dict[str, bytes]:
    """Everything that lies in a place."""
    names = [layout.PLAN, layout.MANIFEST]
    names += [name for folder in ("shards", "receipts", "claims", "owners") for name in storage.names(folder)]
    return {name: storage.get(name) or b"" for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a harvest that nothing disturbed comes to."""
    out = tmp_path_factory.mktemp("whole")
    harvest(open_storage(str(out)), crew(out), quiet)
    return contents(open_storage(str(out)))


def test_a_harvest_is_its_plan_receipts_shards_and_manifest(whole: dict[str, bytes]) -> None:
    """Four units: four shards, four receipts, no claims nor owners that are left; receipts are small."""
    assert len([name for name in whole if name.startswith("shards/")]) == 4
    receipts = {name: data for name, data in whole.items() if name.startswith("receipts/")}
    assert len(receipts) == 4 and max(map(len, receipts.values())) < 1000
    assert len(whole) == 10


def test_it_goes_on_where_it_was_stopped(place: str, whole: dict[str, bytes]) -> None:
    """Ctrl-C in the middle, then the same again: committed units are not run again, and the result is the same bytes."""
    first = crew(place)

    def stop_at_two(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(open_storage(place), first, stop_at_two)
    second = crew(place)
    report = harvest(open_storage(place), second, quiet)
    assert (first.ran, second.ran, report.units_here) == ([0, 1], [2, 3], 2)
    assert contents(open_storage(place)) == whole


def test_a_finished_harvest_is_found_finished(tmp_path: Path) -> None:
    harvest(open_storage(str(tmp_path)), crew(tmp_path), quiet)
    again = crew(tmp_path)
    report = harvest(open_storage(str(tmp_path)), again, quiet)
    assert (again.ran, report.units_here, report.manifest.plan.n_units) == ([], 0, 4)


def test_another_plan_is_refused_with_the_difference(tmp_path: Path) -> None:
    """Another context and seed on the same place: both are named, and nothing is changed."""
    harvest(open_storage(str(tmp_path)), crew(tmp_path), quiet)
    before = contents(open_storage(str(tmp_path)))
    with pytest.raises(SettingsError, match=r"seed: 0, not 1.*context: 48, not 32"):
        harvest(open_storage(str(tmp_path)), crew(tmp_path, seed=1, context=32), quiet)
    assert contents(open_storage(str(tmp_path))) == before


def test_two_harvests_on_one_place_share_the_work(place: str, whole: dict[str, bytes]) -> None:
    """Started at once: every unit is run by one of them, and both see the same manifest."""
    crews = [crew(place), crew(place)]
    reports = []

    def run(i: int) -> None:
        reports.append(harvest(open_storage(place), crews[i], quiet, lease_s=4.0))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(crews[0].ran + crews[1].ran) == [0, 1, 2, 3]
    assert reports[0].manifest == reports[1].manifest
    assert {k: v for k, v in contents(open_storage(place)).items() if not k.startswith(("claims", "owners"))} == whole


def test_a_unit_whose_worker_dies_is_done_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """A worker that dies twice of a unit costs nothing but the time; nothing is there twice."""
    deaths = [1, 2, 1]
    victim = crew(tmp_path)

    def dies(unit: int) -> bool:
        if doomed := unit in deaths:
            deaths.remove(unit)
        return doomed

    victim._dies = dies
    report = harvest(open_storage(str(tmp_path)), victim, quiet)
    assert report.workers_lost == 3 and sorted(victim.ran) == [0, 1, 2, 3]
    assert contents(open_storage(str(tmp_path))) == whole


def test_a_unit_that_ends_every_worker_ends_the_harvest(tmp_path: Path) -> None:
    """After three the error names the unit and what to try; the rest is kept."""
    victim = crew(tmp_path)
    victim._dies = lambda unit: unit == 2
    with pytest.raises(EngineError, match=r"unit 2: 3 workers died.*SIGKILL.*--unit-texts"):
        harvest(open_storage(str(tmp_path)), victim, quiet)
    assert victim.ran == [0, 1]


def test_a_receipt_of_another_plan_is_damage(tmp_path: Path) -> None:
    """Someone's file under a receipt's name does not pass for a committed unit of this plan."""
    storage = open_storage(str(tmp_path))
    harvest(storage, crew(tmp_path), quiet)
    storage.put(layout.receipt(1), storage.get(layout.receipt(0)) or b"")
    storage.delete([layout.MANIFEST])
    with pytest.raises(HarvestDamaged, match=r"receipts/000001.json: is of unit 0"):
        harvest(storage, crew(tmp_path), quiet)


def test_an_empty_place_has_no_plan(tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match="there is no harvest here"):
        held_plan(open_storage(str(tmp_path)))


def test_a_server_that_goes_away_is_an_error_and_a_new_start_goes_on(
    monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    """S3 stops in the middle: an error that names the object, within the patience; with the server back, the rest is done."""
    server = S3Server()
    monkeypatch.setattr(objects, "PATIENCE_S", 1.0)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    place = f"{server.make_bucket('gone')}/rows"
    saved: dict[str, bytes] = {}

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2 and not saved:
            saved.update(contents(open_storage(place)))
            server.stop()

    with pytest.raises(HarvestError, match=r"s3://gone/rows/.* failed"):
        harvest(open_storage(place), crew(place), stop)
    server.process = server._started()  # moto forgets what it held: what was committed is put back
    server.make_bucket("gone")
    for name, data in saved.items():
        if not name.startswith("owners") and name != layout.MANIFEST:
            open_storage(place).put(name, data)
    second = crew(place)
    harvest(open_storage(place), second, quiet)
    assert second.ran == [2, 3] and contents(open_storage(place)) == whole
    server.stop()
