"""Paths, links and pipes: no name in a file leads out of its folder, nothing waits for a pipe, and files are private."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.attacks.probes import probe
from support.attacks.recordings import SITES, record

from actscope.errors import ActscopeError, HarvestDamaged, HarvestError, ProbeError, RecordingError, RingError
from actscope.feed.buffer.position import Position
from actscope.feed.messages import Loaded
from actscope.feed.server.checkpoint import StateFile
from actscope.feed.server.shm_server import _sweep
from actscope.feed.settings import FeedSettings
from actscope.harvest import open_harvest
from actscope.harvest.batches import Batches
from actscope.harvest.storage.local import LocalStorage
from actscope.harvest.verifying import verify
from actscope.probes import load_probe, load_probes, save_probe
from actscope.probes.importing import import_probes
from actscope.probes.labels import load_labelled
from actscope.probes.sae import load_encoder
from actscope.recording.export import export
from actscope.recording.importing import import_packets
from actscope.recording.reading.recording import Recording
from actscope.runtime.directory import runtime_dir
from actscope.store import recover

FACTS = Loaded(
    pid=1, engine="hf", model="m", revision="r", sites=["s"], width=8, dtype="float32", deterministic=True, dataset="d",
    fingerprint="f", n_texts=3,
)  # fmt: skip
HARVEST = Path(__file__).parents[1] / "data" / "harvest-0.1"


@pytest.fixture
def harvest(tmp_path: Path) -> Path:
    """A finished harvest of our own."""
    return shutil.copytree(HARVEST, tmp_path / "h")


def edited(path: Path, **fields: object) -> None:
    """Change fields of a JSON file."""
    content = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(content | fields))


NAMES = (
    "../../../etc/passwd",
    "shards/../../../../etc/passwd",
    "/etc/passwd",
    "shards/000000-f50d88ab39a9.safetensors/../../plan.json",
    "plan.json",
    "shards/",
    "",
    "shards/000000-\0.safetensors",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_receipt_that_names_another_file_is_damaged_and_the_file_is_not_read(harvest: Path, name: str) -> None:
    file = harvest / "receipts" / "000000.json"
    entry = msgspec.json.decode(file.read_bytes())["files"][0]
    edited(file, files=[entry | {"name": name}])
    found = verify(LocalStorage(harvest), lambda *_: None)
    assert not found.ok and any("is not the name of a shard" in problem for problem in found.problems)
    assert "passwd: has changed" not in found.as_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_that_names_another_file_is_refused(harvest: Path, name: str) -> None:
    shards = msgspec.json.decode((harvest / "manifest.json").read_bytes())["shards"]
    edited(harvest / "manifest.json", shards=[shards[0] | {"name": name}, *shards[1:]])
    with pytest.raises(HarvestDamaged, match="is not the name of a shard"):
        open_harvest(harvest)


@pytest.mark.parametrize("name", ["../plan.json", "shards/../../x", "/etc/passwd", "a//b", "."])
def test_a_storage_reads_and_writes_in_its_own_folder_alone(harvest: Path, name: str) -> None:
    storage = LocalStorage(harvest)
    for use in (storage.get, storage.size, lambda n: list(storage.chunks(n)), lambda n: storage.put(n, b"x")):
        with pytest.raises(HarvestError, match="is not the name of an object"):
            use(name)


def test_links_in_a_harvest_are_not_followed(harvest: Path, tmp_path: Path) -> None:
    """Neither a shard nor the folder of shards may be a link."""
    shard = next((harvest / "shards").iterdir())
    (tmp_path / "elsewhere").write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HarvestError):
        verify(LocalStorage(harvest), lambda *_: None)
    (harvest / "shards").rename(tmp_path / "moved")
    (harvest / "shards").symlink_to(tmp_path / "moved")
    with pytest.raises(HarvestError, match="link, which is not followed"):
        LocalStorage(harvest).get(f"shards/{shard.name}")


def test_a_harvest_whose_shards_have_other_rows_than_it_says_is_refused(harvest: Path) -> None:
    """One without shards made batches spin for ever."""
    edited(harvest / "manifest.json", shards=[])
    with pytest.raises(HarvestDamaged, match=r"its shards have 0 rows, and it says \d+"):
        open_harvest(harvest)


@pytest.mark.parametrize("start", [{"epoch": 0, "rows": 1 << 40}, {"epoch": -1, "rows": 0}, {"epoch": 0, "rows": -1}])
def test_batches_resume_only_inside_of_the_harvest(harvest: Path, start: dict[str, int]) -> None:
    found = open_harvest(harvest)
    with pytest.raises(ActscopeError, match="expected an epoch from 0"):
        Batches(found, found.sites[0], 4, start=start)


@pytest.mark.parametrize("name", ["segment-000001.mcap", "manifest.json", "watermark"])
def test_links_in_a_recording_are_neither_read_nor_written_through(tmp_path: Path, name: str) -> None:
    """A link in the place of a file, or of a temporary one, leaves its target as it was."""
    path = record(tmp_path / "r.acts")
    target = tmp_path / "precious"
    target.write_bytes(b"keep me" * 1000)
    (path / name).unlink()
    (path / name).symlink_to(target)
    for temporary in ("segment-000001.mcap.tmp", "probe.tmp", "manifest.json.tmp"):
        (path / temporary).symlink_to(target)
    for use in (lambda: Recording.open(path).describe(), lambda: recover(path), lambda: recover(path, salvage=True)):
        with contextlib.suppress(RecordingError):
            use()
    assert target.read_bytes() == b"keep me" * 1000


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_pipe_among_probes_is_refused_without_waiting(tmp_path: Path, suffix: str) -> None:
    save_probe(probe(), tmp_path / "joy.safetensors")
    os.mkfifo(tmp_path / f"enc_1_pipe{suffix}")
    bad: list[ProbeError] = []
    assert [one.id for one in load_probes(tmp_path, bad.append)] == ["joy"]
    assert len(bad) == 1 and "expected a regular file" in str(bad[0])


def test_pipes_in_the_place_of_any_file_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for name in ("c.gguf", "m.skops", "sae.safetensors", "params.npz", "state.json", "r.packets"):
        (tmp_path / name).symlink_to(pipe)
    (tmp_path / "sae").mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / "sae" / name).symlink_to(pipe)
    settings = FeedSettings(model="m", dataset="d", state=str(tmp_path / "state.json"))
    for use in (
        lambda: import_probes(tmp_path / "c.gguf"),
        lambda: import_probes(tmp_path / "m.skops", site=SITES[0]),
        lambda: load_probe(pipe),
        lambda: load_encoder(tmp_path / "sae.safetensors"),
        lambda: load_encoder(tmp_path / "params.npz"),
        lambda: load_encoder(tmp_path / "sae"),
        lambda: StateFile.open(settings),
        lambda: import_packets(tmp_path / "r.packets", tmp_path / "r.acts"),
    ):
        with pytest.raises(ActscopeError, match="expected a regular file, found a pipe"):
            use()
    with pytest.raises(ActscopeError, match="expected a regular file, found a directory: name a file in it"):
        load_labelled(tmp_path, 10)


BAD_PROBES = {
    "enc_1_bytes.json": b'{"vector": [1.0], "label": "\xff"}',
    "enc_1_deep.json": b"[" * 100_000,
    "enc_1_digits.json": b'{"vector": [' + b"9" * 5000 + b"]}",
    "enc_1_wide.json": b'{"vector": [1e400]}',
    "enc_99999999999999999999_x.json": b'{"vector": [1.0]}',
    "empty.safetensors": b"",
    "bomb.safetensors": b"\xff" * 64,
    "pickled.safetensors": b"\x80\x04cos\nsystem\n(S'false'\ntR.",
}


def test_a_bad_probe_is_left_out_with_a_word_and_the_others_are_loaded(tmp_path: Path) -> None:
    """One bad file in --probes kept a server from starting."""
    save_probe(probe(), tmp_path / "joy.safetensors")
    save_probe(probe(), tmp_path / "same-id.safetensors")
    for name, data in BAD_PROBES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "gone.json").symlink_to(tmp_path / "absent")
    bad: list[ProbeError] = []
    assert [one.id for one in load_probes(tmp_path, bad.append)] == ["joy"]
    assert len(bad) == len(BAD_PROBES) + 3
    assert all(str(error).startswith(str(tmp_path)) for error in bad), [str(error) for error in bad]


def modes(folder: Path) -> dict[str, str]:
    """Mode of each file and folder that others can read."""
    found = [folder, *folder.rglob("*")]
    return {str(p.relative_to(folder)): stat.filemode(p.lstat().st_mode) for p in found if p.lstat().st_mode & 0o077}


def test_what_holds_activations_or_tokens_is_private(tmp_path: Path) -> None:
    """Recordings, what is exported or recovered from them, harvests, probes and the state of a feed: 0700 and 0600."""
    before = os.umask(0)
    try:
        recording = record(tmp_path / "r.acts")
        for form in ("safetensors", "npy", "packets", "parquet"):
            export(Recording.open(recording), tmp_path / f"export-{form}", form)
        import_packets(tmp_path / "export-packets", tmp_path / "imported.acts")
        broken = shutil.copytree(recording, tmp_path / "broken.acts")
        with (broken / "segment-000001.mcap").open("r+b") as file:
            file.seek(-200, os.SEEK_END)
            file.write(b"x" * 50)
        recover(broken, salvage=True)
        storage = LocalStorage(tmp_path / "h")
        storage.put_new("shards/000000-0.safetensors", b"rows")
        storage.put("owners/a.json", b"1")
        storage.put("owners/a.json", b"2")
        save_probe(probe(), tmp_path / "joy.safetensors")
        state = StateFile(tmp_path / "state.json", {}, None)
        state.write(Position(1), FACTS)
    finally:
        os.umask(before)
    open_to_others = {name: mode for name, mode in modes(tmp_path).items() if name not in (".", "broken.acts")}
    assert open_to_others == {}


def test_sockets_of_killed_feeds_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    folder = runtime_dir()
    living, dead, young = (folder / f"feed-{name}.sock" for name in ("living", "dead", "young"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(living))
        listener.listen(1)
        for path in (dead, young):
            with socket.socket(socket.AF_UNIX) as gone:
                gone.bind(str(path))
        (folder / "feed-file.sock").write_bytes(b"not a socket")
        hour_ago = time.time() - 3600
        for path in (living, dead, folder / "feed-file.sock"):
            os.utime(path, (hour_ago, hour_ago))
        _sweep(folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "feed-file.sock",
            "feed-living.sock",
            "feed-young.sock",
        ]


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_runtime_directory_that_another_may_have_prepared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """/tmp/actscope-<uid> may be a link, or open to others, before our first process makes it."""
    place = tmp_path / "actscope-0"
    if kind == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "theirs")
    elif kind == "open":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_bytes(b"")
    monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(place))
    with pytest.raises(RingError):
        runtime_dir()


def test_numbers_of_rows_are_as_before(tmp_path: Path) -> None:
    """The checks leave a whole recording as it was: rows, errors, tokens and what is said of it."""
    recording = Recording.open(record(tmp_path / "r.acts"))
    verdict = recording.verify()
    assert verdict.ok and verdict.unlabelled == 0 and verdict.absent == {}
    rows = recording.rows(SITES[0], "a", slice(2, 9))
    assert rows.labels["position"].tolist() == list(range(4, 9))
    backwards = recording.rows(SITES[0], "a", slice(None, None, -2)).labels["position"]
    assert len(backwards) and np.all(np.diff(backwards) == 2)
    stored = sum(token.stored_bytes for request in recording.requests for token in recording.tokens(request))
    assert stored == pytest.approx(sum(recording[site].blocks.entries["length"].sum() for site in SITES))
    errors = recording[SITES[1]].errors()
    assert 0 < errors.mean <= errors.p999 <= errors.worst <= 1e-3
