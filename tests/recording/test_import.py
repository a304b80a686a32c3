"""Packet streams become recordings: ours as they were, foreign ones by what one says of them, bad ones not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.recordings.made import rows_of, step_of
from support.recordings.real_model import record, run_model

from actscope.errors import RecordingError, SettingsError
from actscope.frames import Frame, RowFlag
from actscope.recording.export import ExportOptions, Selection, export
from actscope.recording.format.packets import PacketWriter, read_packets
from actscope.recording.importing import ImportOptions, import_packets
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder

PLAIN = ImportOptions(codec="none")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording.open(record(run_model(dtype=request.param), tmp_path_factory.mktemp("rec") / "run.acts"))


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """A stream of ours of two requests whose steps meet, with a row that was computed twice."""
    with Recorder.create(tmp_path / "rec", RecordingSpec(("embed", "layers.0.mlp_out"), codec="none")) as recorder:
        for number, lanes in enumerate(
            [[("a/1", 0, 4)], [("b", 0, 3)], [("a/1", 4, 1), ("b", 3, 1)], [("a/1", 3, 2)]], 1
        ):
            step = step_of(number, lanes)
            if number == 4:
                step.meta["flags"] |= np.uint32(RowFlag.RECOMPUTED)
            recorder.write(step, [Frame(site, rows_of(step, site)) for site in recorder.spec.sites])
    return export(Recording.open(tmp_path / "rec"), tmp_path / "stream", "packets").path


def write(path: Path, *packets: tuple[str, bytes]) -> Path:
    with path.open("wb") as file:
        for name, data in packets:
            PacketWriter(file).write(name, data)
    return path


def same(one: Recording, other: Recording) -> None:
    assert other.sites == one.sites
    assert other.requests == one.requests
    np.testing.assert_array_equal(other.labels(), one.labels())
    for site in one.sites:
        assert other[site].source_dtype == one[site].source_dtype
        np.testing.assert_array_equal(other[site].torch().view(torch.uint8), one[site].torch().view(torch.uint8))
    assert [other.request(r) for r in other.requests] == [one.request(r) for r in one.requests]


def test_a_real_recording_comes_back_from_its_packets_bit_for_bit(real: Recording, tmp_path: Path) -> None:
    for name, options in {"whole": ExportOptions(), "split": ExportOptions(chunk_bytes=700)}.items():
        path = export(real, tmp_path / name, "packets", options=options).path
        report = import_packets(path, tmp_path / f"{name}.acts", PLAIN)
        assert (report.ours, report.rows, report.skipped) == (True, real.n_rows, 0)
        found = Recording.open(report.path)
        same(real, found)
        assert found.info["model"] == real.info["model"]
        assert found.texts == real.texts
    with (tmp_path / "split").open("rb") as file:
        assert max(len(p.data) for p in read_packets(file) if p.name.startswith("layers.")) <= 700


def test_steps_of_several_requests_and_recomputed_rows_come_back_too(stream: Path, tmp_path: Path) -> None:
    report = import_packets(stream, tmp_path / "back", PLAIN)
    found = Recording.open(report.path)
    same(Recording.open(tmp_path / "rec"), found)
    assert found.rows("embed", "a/1", [3]).labels["flags"] & RowFlag.RECOMPUTED


def test_rows_that_one_site_has_lost_stay_lost(tmp_path: Path) -> None:
    """A site without some rows must not borrow its neighbour's, nor take the others' rows with it."""
    with Recorder.create(tmp_path / "rec", RecordingSpec(("embed", "final_norm"), codec="none")) as recorder:
        for number in range(1, 5):
            step = step_of(number, [("r", 2 * number, 2)])
            sites = ["embed"] if number in (2, 3) else ["embed", "final_norm"]
            recorder.write(step, [Frame(site, rows_of(step, site)) for site in sites])
    before = Recording.open(tmp_path / "rec")
    path = export(before, tmp_path / "stream", "packets").path
    after = Recording.open(import_packets(path, tmp_path / "back", PLAIN).path)
    same(before, after)
    assert after["final_norm"].labels["position"].tolist() == [2, 3, 8, 9]


def test_only_the_wanted_sites_are_taken(stream: Path, tmp_path: Path) -> None:
    report = import_packets(stream, tmp_path / "back", ImportOptions(sites=("layers.*",), codec="none"))
    assert report.sites == ("layers.0.mlp_out",) and report.skipped == 5
    with pytest.raises(RecordingError, match="none of its sites is wanted; it has embed"):
        import_packets(stream, tmp_path / "none", ImportOptions(sites=("x*",), codec="none"))


def test_unknown_packets_are_left_out_and_counted(stream: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more", ("comment", b"hello"))
    stream.write_bytes(stream.read_bytes() + more.read_bytes())
    assert import_packets(stream, tmp_path / "back", PLAIN).skipped == 1


def test_every_truncated_stream_is_refused_or_a_whole_beginning_and_leaves_nothing(
    stream: Path, tmp_path: Path
) -> None:
    raw = stream.read_bytes()
    with stream.open("rb") as file:
        edges = {packet.offset for packet in read_packets(file)} | {len(raw)}
    cut = tmp_path / "cut"
    for length in range(1, len(raw), 7):
        cut.write_bytes(raw[:length])
        if length not in edges:
            with pytest.raises(RecordingError, match=r"the packet at byte \d+ is cut off"):
                import_packets(cut, tmp_path / "back", PLAIN)
            assert not (tmp_path / "back").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"rec", "stream", "cut"}


SPAN = {
    "request": "r",
    "position": 0,
    "rows": 1,
    "step": 1,
    "time_ns": 0,
    "n_prompt": 0,
    "token_ids": [1],
    "flags": [0],
}
HEADER = {"sites": {"s": {"dtype": "float32", "width": 2}}}


def packed(*packets: tuple[str, object]) -> list[tuple[str, bytes]]:
    return [(name, data if isinstance(data, bytes) else json.dumps(data).encode()) for name, data in packets]


@pytest.mark.parametrize(
    ("packets", "says"),
    [
        ([("actscope/header", HEADER | {"version": 9})], "version 9"),
        ([("actscope/header", HEADER | {"byte_order": "big"})], "big-endian"),
        ([("actscope/header", b"{")], "packet at byte 0 is not what its name says"),
        ([("actscope/header", {"sites": {}})], "no sites"),
        ([("actscope/header", {"sites": {"s": {"dtype": "object", "width": 2}}})], "dtype or width"),
        (
            [("actscope/header", HEADER), ("actscope/span", SPAN), ("s/r/0", bytes(7))],
            "7 bytes are no rows of 2 x float32",
        ),
        ([("actscope/header", HEADER), ("actscope/span", SPAN), ("s/r/0", bytes(16))], "expected 1 rows, .* found 2"),
        (
            [("actscope/header", HEADER), ("actscope/span", SPAN), ("s/other/0", bytes(8))],
            "does not belong to the span",
        ),
        ([("actscope/header", HEADER), ("s/r/0", bytes(8))], "does not belong to the span"),
        ([("actscope/header", HEADER), ("actscope/span", SPAN | {"token_ids": []})], "do not hold together"),
        ([("actscope/header", HEADER), ("actscope/span", SPAN | {"rows": 1 << 60})], "do not hold together"),
        ([("actscope/header", HEADER), ("actscope/span", SPAN | {"position": -1})], "do not hold together"),
        ([("actscope/header", HEADER), ("actscope/span", SPAN | {"flags": [1 << 40]})], "do not hold together"),
        (
            [("actscope/header", HEADER), ("actscope/span", SPAN | {"step": 1 << 63})],
            "do not hold together|not what its name",
        ),
    ],
)
def test_streams_that_do_not_hold_together_are_refused(
    packets: list[tuple[str, object]], says: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "s", *packed(*packets))
    with pytest.raises(RecordingError, match=says):
        import_packets(path, tmp_path / "back", PLAIN)
    assert not (tmp_path / "back").exists()


def test_a_foreign_stream_needs_dtype_and_width(tmp_path: Path) -> None:
    path = write(tmp_path / "s", ("layers.0", bytes(16)))
    with pytest.raises(SettingsError, match=r"--dtype, --width"):
        import_packets(path, tmp_path / "back")
    with pytest.raises(SettingsError, match="dtype 'object'"):
        ImportOptions(dtype="object")
    with pytest.raises(RecordingError, match=r"16 bytes of the packet 'layers.0' at byte 0 are no rows of 3 x float32"):
        import_packets(path, tmp_path / "back", ImportOptions("float32", 3))


@pytest.mark.parametrize("order", ["by step", "by site"])
def test_a_foreign_stream_of_bare_names_counts_positions_and_joins_sites(tmp_path: Path, order: str) -> None:
    """Whatever the order of packets, the n-th rows of all sites are of the same tokens."""
    rng = np.random.default_rng(0)
    rows = {site: [rng.standard_normal((n, 4)).astype("<f4") for n in (5, 1, 1)] for site in ("layers.0", "layers.1")}
    by_step = [(site, rows[site][i].tobytes()) for i in range(3) for site in rows]
    by_site = [(site, part.tobytes()) for site in rows for part in rows[site]]
    path = write(tmp_path / "s", *(by_step if order == "by step" else by_site))
    report = import_packets(path, tmp_path / "back", ImportOptions("float32", 4, request="run", codec="none"))
    assert (report.ours, report.rows, report.requests, report.packets) == (False, 7, 1, 6)
    found = Recording.open(report.path)
    assert found.requests == ["run"]
    for site in rows:
        got = found.rows(site, "run")
        np.testing.assert_array_equal(got.values, np.concatenate(rows[site]))
        assert got.labels["position"].tolist() == list(range(7))
        assert set(got.labels["token_id"].tolist()) == {-1}


def test_a_foreign_stream_may_say_its_places_in_its_names(tmp_path: Path) -> None:
    a, b = np.ones((2, 3), "<f2"), np.full((1, 3), 2, "<f2")
    path = write(tmp_path / "s", ("h%2F0/chat%20a/10", a.tobytes()), ("h%2F0/chat%20a/12", b.tobytes()))
    found = Recording.open(import_packets(path, tmp_path / "back", ImportOptions("float16", 3, codec="none")).path)
    assert (found.sites, found.requests) == (("h/0",), ["chat a"])
    assert found.rows("h/0", "chat a").labels["position"].tolist() == [10, 11, 12]
    assert found["h/0"].source_dtype == "float16"


def test_a_pattern_finds_site_and_position_in_foreign_names(tmp_path: Path) -> None:
    packets = [
        (f"L{layer}@{token}", np.full((1, 2), 10 * layer + token, "<f4").tobytes())
        for token in (0, 1, 2)
        for layer in (3, 7)
    ]
    path = write(tmp_path / "s", *packets)
    options = ImportOptions("float32", 2, names=r"(?P<site>L\d+)@(?P<position>\d+)", codec="none")
    found = Recording.open(import_packets(path, tmp_path / "back", options).path)
    assert found.sites == ("L3", "L7")
    assert found["L7"][:][:, 0].tolist() == [70, 71, 72]
    for names, says in (("(", "not a regular expression"), ("x", r"expected a group")):
        with pytest.raises(SettingsError, match=says):
            import_packets(path, tmp_path / "no", ImportOptions("float32", 2, names=names))
    with pytest.raises(RecordingError, match=r"'L3@0' at byte 0 does not fit the pattern"):
        import_packets(path, tmp_path / "no", ImportOptions("float32", 2, names="(?P<site>Q.*)"))


def test_foreign_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    rows = torch.randn(6, 4).bfloat16()
    path = write(tmp_path / "s", ("h", rows.view(torch.uint8).numpy().tobytes()))
    found = Recording.open(import_packets(path, tmp_path / "back", ImportOptions("bfloat16", 4, codec="none")).path)
    assert torch.equal(found["h"].torch(), rows)


def test_sites_that_cut_their_positions_otherwise_are_refused(tmp_path: Path) -> None:
    """Rows of one token would silently become two tokens."""
    path = write(tmp_path / "s", ("a/r/0", bytes(32)), ("b/r/0", bytes(16)), ("b/r/2", bytes(16)))
    with pytest.raises(RecordingError, match=r"overlap otherwise than whole: 'a/r/0' .*|overlap .*'b/r/0'"):
        import_packets(path, tmp_path / "back", ImportOptions("float32", 2))


def test_more_names_than_sites_can_be_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "s", *((f"x{i}", bytes(8)) for i in range(5000)))
    with pytest.raises(RecordingError, match="more than 4096 different names"):
        import_packets(path, tmp_path / "back", ImportOptions("float32", 2))


def test_a_recording_that_is_there_is_never_touched(stream: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="exists already"):
        import_packets(stream, tmp_path / "rec", PLAIN)
    with pytest.raises(RecordingError, match="No such file"):
        import_packets(tmp_path / "absent", tmp_path / "new", PLAIN)
    with pytest.raises(RecordingError, match="an empty stream"):
        import_packets(write(tmp_path / "nothing"), tmp_path / "new", PLAIN)


def test_positions_are_of_the_export_too(stream: Path, tmp_path: Path) -> None:
    part = export(
        Recording.open(tmp_path / "rec"),
        tmp_path / "part",
        "packets",
        Selection(requests=("b",), positions=slice(1, 3)),
    )
    found = Recording.open(import_packets(part.path, tmp_path / "back", PLAIN).path)
    assert found.requests == ["b"]
    assert found.labels()["position"].tolist() == [1, 2]
