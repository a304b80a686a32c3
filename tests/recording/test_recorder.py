"""The recorder: what is put comes back with its label, memory is bounded, and every loss is counted."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.recordings.made import frames_of, row_of, rows_of, step_of, token_of
from support.waiting import until

from actscope.clock import monotonic_ns
from actscope.errors import RecordingError, RecordingPoisoned, SettingsError, SiteError
from actscope.frames import Frame, RowFlag
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.block_writer import BlockWriter
from actscope.recording.writing.recorder import Recorder

SITES = ("layers.0.resid_post", "layers.1.resid_post")


def spec(codec: str = "none", sites: tuple[str, ...] = SITES) -> RecordingSpec:
    return RecordingSpec(sites, codec, model={"name": "tiny", "revision": "1"})


def record(
    path: Path, n_steps: int = 20, codec: str = "none", first: int = 1, resume: bool = False, **options: object
) -> None:
    with Recorder.create(path, spec(codec), PipelineOptions(**options), resume=resume) as recorder:  # type: ignore[arg-type]
        for number in range(first, first + n_steps):
            step = step_of(number, [("a", number - 1, 1), ("b", 3 * (number - 1), 3)])
            recorder.write(step, frames_of(step, SITES))


def test_rows_come_back_by_site_request_and_position(tmp_path: Path) -> None:
    record(tmp_path / "r.acts")
    found = Recording.open(tmp_path / "r.acts")
    assert found.requests == ["a", "b"] and found.complete and found.damage == []
    for site in SITES:
        for request, n in (("a", 20), ("b", 60)):
            rows = found.rows(site, request)
            assert rows.labels["position"].tolist() == list(range(n))
            assert rows.labels["token_id"].tolist() == [token_of(request, p) for p in range(n)]
            np.testing.assert_array_equal(rows.values, [row_of(request, p, site) for p in range(n)])


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "shuffle_zstd", "lossless", "auto"])
def test_a_lossless_codec_gives_back_every_bit(tmp_path: Path, codec: str) -> None:
    record(tmp_path / "r.acts", codec=codec)
    found = Recording.open(tmp_path / "r.acts")
    np.testing.assert_array_equal(found.rows(SITES[0], "b").values, [row_of("b", p, SITES[0]) for p in range(60)])
    assert found[SITES[0]].errors().worst == 0


def test_a_slice_an_array_and_single_positions_select(tmp_path: Path) -> None:
    record(tmp_path / "r.acts")
    found = Recording.open(tmp_path / "r.acts")
    site = SITES[1]
    assert found.rows(site, "b", slice(10, 50, 7)).labels["position"].tolist() == list(range(10, 50, 7))
    assert found.rows(site, "b", [5, 2, 5]).labels["position"].tolist() == [5, 2, 5]
    np.testing.assert_array_equal(found.rows(site, "b", 9).values, [row_of("b", 9, site)])
    np.testing.assert_array_equal(
        found.rows(site, "b", slice(-2, None)).values, [row_of("b", p, site) for p in (58, 59)]
    )
    np.testing.assert_array_equal(found[site][3:7], found[site][np.arange(3, 7)])
    np.testing.assert_array_equal(found[site][-1], found[site][:][-1])
    assert found[site].shape == (80, 8) and len(list(found.iter_rows(site, 32))) == 3


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    record(tmp_path / "r.acts")
    found = Recording.open(tmp_path / "r.acts")
    with pytest.raises(RecordingError, match=r"positions \[60\]: they were never computed"):
        found.rows(SITES[0], "b", [59, 60])
    with pytest.raises(RecordingError, match="no request 'c'"):
        found.rows(SITES[0], "c")
    with pytest.raises(SiteError, match=r"no site 'layers\.7\.resid_post'"):
        found["layers.7.resid_post"]
    with pytest.raises(RecordingError, match="name it"):
        found.rows(SITES[0], positions=3)


def test_bfloat16_keeps_its_bits_and_reads_as_float32(tmp_path: Path) -> None:
    rows = torch.randn(6, 8).to(torch.bfloat16)
    with Recorder.create(tmp_path / "r.acts", spec("lossless", SITES[:1])) as recorder:
        recorder.write(step_of(1, [("a", 0, 6)]), [Frame(SITES[0], rows)])
    site = Recording.open(tmp_path / "r.acts")[SITES[0]]
    assert site.source_dtype == "bfloat16" and torch.equal(site.torch(), rows)
    np.testing.assert_array_equal(site[:], rows.float().numpy())


def test_a_row_that_was_computed_again_replaces_the_first(tmp_path: Path) -> None:
    first, again = step_of(1, [("a", 0, 3)]), step_of(2, [("a", 1, 2)])
    again.meta["flags"] = RowFlag.RECOMPUTED
    draft = step_of(3, [("a", 3, 1)])
    draft.meta["flags"] = RowFlag.REJECTED
    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        recorder.write(first, frames_of(first, SITES))
        recorder.write(again, [Frame(site, np.ones((2, 8), np.float32)) for site in SITES])
        recorder.write(draft, frames_of(draft, SITES))
    found = Recording.open(tmp_path / "r.acts")
    rows = found.rows(SITES[0], "a")
    assert rows.labels["position"].tolist() == [0, 1, 2] and rows.labels["step"].tolist() == [1, 2, 2]
    assert (rows.values[1:] == 1).all() and len(found[SITES[0]]) == 6
    assert repr(found).endswith("1 requests, 6 rows, 2 sites, complete>")
    assert repr(found[SITES[0]]) == "<SiteRows 'layers.0.resid_post': 6 x 8 float32>"


def test_what_was_computed_after_the_end_does_not_count_as_present(tmp_path: Path) -> None:
    step = step_of(1, [("a", 0, 6)])
    step.meta["flags"][4:] = RowFlag.AFTER_EOS
    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        recorder.write(step, frames_of(step, SITES))
    summary = Recording.open(tmp_path / "r.acts").request("a")
    assert (summary.present, summary.computed) == (4, 4)


def test_rows_of_a_step_that_did_not_end_are_not_delivered(tmp_path: Path) -> None:
    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        broken, whole = step_of(1, [("a", 0, 3)]), step_of(2, [("a", 0, 3)])
        recorder.begin(broken)
        recorder.put(broken, SITES[0], rows_of(broken, SITES[0]))
        recorder.end(broken, complete=False)
        recorder.write(whole, frames_of(whole, SITES))
        assert recorder.stats().incomplete_steps == 1
    found = Recording.open(tmp_path / "r.acts")
    assert found.n_rows == 3 and set(found.labels()["step"].tolist()) == {2}
    assert len(found[SITES[0]]) == 3


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While this event is not set, no block reaches the store."""
    go = threading.Event()
    write = BlockWriter.write

    def waiting(self: BlockWriter, *args: object) -> None:
        go.wait()
        write(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockWriter, "write", waiting)
    return go


def big(number: int, rows: int = 4096) -> tuple[object, list[Frame]]:
    step = step_of(number, [("a", (number - 1) * rows, rows)])
    return step, [Frame(site, np.full((rows, 256), number, np.float32)) for site in SITES]


def test_drops_are_counted_exactly_and_stand_in_the_recording(tmp_path: Path, held: threading.Event) -> None:
    options = PipelineOptions(policy="drop", memory_bytes=64 << 20)
    with Recorder.create(tmp_path / "r.acts", spec(), options) as recorder:
        for number in range(1, 21):
            recorder.write(*big(number))  # type: ignore[arg-type]
        stats = recorder.stats()
        assert stats.dropped_rows > 0 and stats.held_bytes_max <= 64 << 20
        held.set()
    found = Recording.open(tmp_path / "r.acts")
    lost = {site: sum(d.n_rows for d in found.drops if d.site == site) for site in SITES}
    assert lost == stats.dropped_by_site and sum(lost.values()) == stats.dropped_rows
    for site in SITES:
        assert len(found[site]) + lost[site] == 20 * 4096 == found.n_rows
        steps = found[site].labels["step"]
        np.testing.assert_array_equal(found[site][:][:, 0], steps)


def test_policy_error_says_what_to_do(tmp_path: Path, held: threading.Event) -> None:
    recorder = Recorder.create(tmp_path / "r.acts", spec(), PipelineOptions(policy="error", memory_bytes=64 << 20))
    with pytest.raises(RecordingError, match="the queue is full"):
        for number in range(1, 21):
            recorder.write(*big(number))  # type: ignore[arg-type]
    held.set()
    recorder.close()


def test_policy_block_waits_and_loses_nothing(tmp_path: Path, held: threading.Event) -> None:
    recorder = Recorder.create(tmp_path / "r.acts", spec(), PipelineOptions(memory_bytes=64 << 20))
    writer = threading.Thread(target=lambda: [recorder.write(*big(number)) for number in range(1, 21)])  # type: ignore[arg-type,func-returns-value]
    writer.start()
    writer.join(0.2)
    assert writer.is_alive() and recorder.stats().held_bytes <= 64 << 20
    held.set()
    writer.join()
    recorder.close()
    found = Recording.open(tmp_path / "r.acts")
    assert len(found[SITES[0]]) == 20 * 4096 and found.drops == [] and recorder.stats().dropped_rows == 0


def test_flush_and_sync_acknowledge_rows(tmp_path: Path) -> None:
    recorder = Recorder.create(tmp_path / "r.acts", spec(), PipelineOptions(flush_seconds=60))
    step = step_of(1, [("a", 0, 5)])
    recorder.write(step, frames_of(step, SITES))
    assert recorder.stats().written_rows == 0
    assert recorder.flush() == 5 and recorder.stats().written_rows == 5
    during = Recording.open(tmp_path / "r.acts")
    np.testing.assert_array_equal(during.rows(SITES[1], "a").values, rows_of(step, SITES[1]))
    assert recorder.sync() == 5 and recorder.stats().durable_rows == 5
    later = step_of(2, [("a", 5, 1)])
    recorder.write(later, frames_of(later, SITES))
    recorder.flush()
    assert during.refresh() > 0 and len(during.rows(SITES[1], "a")) == 6 and not during.complete
    recorder.close()
    during.refresh()
    assert during.complete


def test_a_resumed_recording_goes_on(tmp_path: Path) -> None:
    record(tmp_path / "r.acts", 5)
    with pytest.raises(RecordingError):
        record(tmp_path / "r.acts", 5)
    with Recorder.create(tmp_path / "r.acts", spec(), resume=True) as recorder:
        assert recorder.known_requests == {"a", "b"}
        step = step_of(1, [("c", 0, 4)])
        recorder.write(step, frames_of(step, SITES))
    found = Recording.open(tmp_path / "r.acts")
    assert found.requests == ["a", "b", "c"] and len(found.sessions) == 4
    assert int(found.labels("c")["step"][0]) == 6
    np.testing.assert_array_equal(found.rows(SITES[0], "c").values, rows_of(step, SITES[0]))
    np.testing.assert_array_equal(found.rows(SITES[0], "b").values, [row_of("b", p, SITES[0]) for p in range(15)])


def test_resuming_with_other_sites_or_another_model_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "r.acts", 1)
    with pytest.raises(RecordingError, match="its sites are"):
        Recorder.create(tmp_path / "r.acts", spec(sites=SITES[:1]), resume=True)
    with pytest.raises(RecordingError, match="its revision are 1, now asked for 2"):
        Recorder.create(
            tmp_path / "r.acts", RecordingSpec(SITES, "none", model={"name": "tiny", "revision": "2"}), resume=True
        )


def test_a_checkpoint_is_there_while_it_runs_and_gone_after_success(tmp_path: Path) -> None:
    recorder = Recorder.create(tmp_path / "r.acts", spec(), PipelineOptions(checkpoint_tokens=4, flush_seconds=0.01))
    step = step_of(1, [("a", 0, 5)])
    recorder.write(step, frames_of(step, SITES))
    until(lambda: recorder.stats().checkpoints > 0)
    note = json.loads((tmp_path / "r.acts/checkpoint.json").read_text())
    assert note["rows"] == 5 and recorder.stats().durable_rows == 5
    recorder.close()
    assert not (tmp_path / "r.acts/checkpoint.json").exists()


def test_texts_marks_and_recorded_tokens_are_kept(tmp_path: Path) -> None:
    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        recorder.texts = lambda ids: [f"<{i}>" for i in ids]
        step = step_of(1, [("a", 0, 5)])
        recorder.write(step, frames_of(step, SITES))
        recorder.mark("a", "it was odd")
        recorder.record_token("a", 5, 17, "end")
    found = Recording.open(tmp_path / "r.acts")
    tokens = found.tokens("a")
    assert [t.text for t in tokens] == [f"<{token_of('a', p)}>" for p in range(5)]
    stored = sum(found[site].blocks.entries["length"].sum() for site in SITES)
    assert sum(t.stored_bytes for t in tokens) == pytest.approx(stored)
    assert [(m.request, m.why) for m in found.marks] == [("a", "it was odd")]
    assert [(t.position, t.text) for t in found.recorded_tokens()] == [(5, "end")]


def test_a_site_keeps_its_dtype_and_width_also_when_it_goes_on(tmp_path: Path) -> None:
    record(tmp_path / "r.acts", 1)
    step = step_of(1, [("c", 0, 4)])
    for rows in (np.zeros((4, 8), np.float16), np.zeros((4, 9), np.float32), torch.zeros((4, 8), dtype=torch.bfloat16)):
        with (
            Recorder.create(tmp_path / "r.acts", spec(), resume=True) as recorder,
            pytest.raises(RecordingError, match="holds float32 rows of width 8"),
        ):
            recorder.write(step, [Frame(SITES[0], rows)])


def test_bfloat16_bits_may_come_as_numpy(tmp_path: Path) -> None:
    bits = np.arange(48, dtype=np.uint16).reshape(6, 8)
    with Recorder.create(tmp_path / "r.acts", spec("shuffle_zstd", SITES[:1])) as recorder:
        step = step_of(1, [("a", 0, 6)])
        recorder.begin(step)
        recorder.put(step, SITES[0], bits, dtype="bfloat16")
        recorder.end(step)
    site = Recording.open(tmp_path / "r.acts")[SITES[0]]
    assert site.source_dtype == "bfloat16"
    np.testing.assert_array_equal(site.native(), bits)


def test_rows_have_a_wall_time(tmp_path: Path) -> None:
    before = time.time_ns()
    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        step = step_of(1, [("a", 0, 5)], time_ns=monotonic_ns())
        recorder.write(step, frames_of(step, SITES))
    with Recorder.create(tmp_path / "r.acts", spec(), resume=True) as recorder:
        recorder.write(step_of(1, [("b", 0, 2)], time_ns=monotonic_ns()), [])
    walls = Recording.open(tmp_path / "r.acts").wall_ns()
    assert len(walls) == 7 and before <= walls.min() <= walls.max() <= time.time_ns()


def test_a_codec_that_fails_costs_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder.create(tmp_path / "r.acts", spec())

    class Broken:
        def encode(self, rows: np.ndarray, dtype: str) -> object:
            raise ZeroDivisionError

        def report(self) -> dict[str, object]:
            return {}

    recorder._blocks._encoders[0] = Broken()  # type: ignore[call-overload]
    step = step_of(1, [("a", 0, 5)])
    recorder.write(step, frames_of(step, SITES))
    recorder.close()
    np.testing.assert_array_equal(
        Recording.open(tmp_path / "r.acts").rows(SITES[0], "a").values, rows_of(step, SITES[0])
    )
    assert "the codec failed" in caplog.text


def test_a_failed_disk_is_reported_once_with_its_path_and_what_was_acknowledged_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder.create(tmp_path / "r.acts", spec())
    step = step_of(1, [("a", 0, 5)])
    recorder.write(step, frames_of(step, SITES))
    recorder.sync()

    def failing(*args: object) -> int:
        raise RecordingPoisoned("no space left on device")

    recorder._store.append = failing  # type: ignore[assignment,method-assign]  # it takes whatever it is given
    late = step_of(2, [("a", 5, 1)])
    recorder.write(late, frames_of(late, SITES))
    for use in (recorder.sync, recorder.flush, recorder.close):
        with pytest.raises(RecordingPoisoned, match=r"r\.acts: recording has stopped: no space"):
            use()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'r.acts'}: recording has stopped: no space left on device"
    ]
    assert recorder._steps.take_unwritten()[1] == []  # nothing is kept for a recording that can say nothing any more
    assert recorder.stats().dropped_rows == 2  # one row at two sites
    np.testing.assert_array_equal(
        Recording.open(tmp_path / "r.acts").rows(SITES[0], "a").values, rows_of(step, SITES[0])
    )


def test_a_disk_that_fails_only_at_the_end_is_reported_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder.create(tmp_path / "r.acts", spec())
    close = recorder._store.close

    def failing() -> None:
        close()
        raise RecordingPoisoned("no space left on device")

    recorder._store.close = failing  # type: ignore[method-assign]
    with pytest.raises(RecordingPoisoned, match=r"r\.acts: recording has stopped: no space"):
        recorder.close()
    assert "r.acts: recording has stopped" in caplog.text and recorder.failure is not None


def test_wrong_rows_and_wrong_options_are_refused(tmp_path: Path) -> None:
    recorder = Recorder.create(tmp_path / "r.acts", spec())
    step = step_of(1, [("a", 0, 5)])
    recorder.begin(step)
    with pytest.raises(RecordingError, match=r"expected \[5, d\] rows"):
        recorder.put(step, SITES[0], np.zeros((4, 8), np.float32))
    with pytest.raises(RecordingError, match="complex64"):
        recorder.put(step, SITES[0], np.zeros((5, 8), np.complex64))
    with pytest.raises(RecordingError, match="expected"):
        recorder.put(step, "layers.9.resid_post", np.zeros((5, 8), np.float32))
    recorder.end(step)
    recorder.close()
    recorder.close()
    with pytest.raises(SettingsError, match="policy 'wait'"):
        PipelineOptions(policy="wait")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="at least 16 MiB"):
        PipelineOptions(memory_bytes=1)
    with pytest.raises(SettingsError, match="one or more different sites"):
        RecordingSpec(())


def test_a_tokenizer_that_fails_costs_the_texts_and_no_rows(tmp_path: Path) -> None:
    def texts(ids: object) -> list[str]:
        raise KeyError("no such token")

    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        recorder.texts = texts
        step = step_of(1, [("a", 0, 3)])
        recorder.write(step, frames_of(step, SITES))
        recorder.flush()
        assert recorder.failure is None
    found = Recording.open(tmp_path / "r.acts")
    assert (found.n_rows, found.complete, found.texts) == (3, True, {})


def test_a_text_that_utf8_cannot_hold_is_kept_as_far_as_it_can(tmp_path: Path) -> None:
    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        recorder.texts = lambda ids: ["x\ud800"] * len(ids)
        step = step_of(1, [("a", 0, 1)])
        recorder.write(step, frames_of(step, SITES))
    assert set(Recording.open(tmp_path / "r.acts").texts.values()) == {"x?"}


def test_a_step_whose_rows_are_refused_holds_nothing_up(tmp_path: Path) -> None:
    """A step with refused rows is closed, so that later steps are acknowledged."""
    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        for number, d in ((1, 8), (2, 9), (3, 8)):
            step = step_of(number, [("a", number - 1, 1)])
            if d == 8:
                recorder.write(step, frames_of(step, SITES, d))
            else:
                with pytest.raises(RecordingError, match="width"):
                    recorder.write(step, frames_of(step, SITES, d))
        assert recorder.flush() == 3
    assert Recording.open(tmp_path / "r.acts").labels()["position"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        (np.zeros((2, 8), np.float32), "bfloat16"),
        (np.zeros((2, 8), ">f4"), None),
        (np.zeros(2, np.float32), None),
        (np.zeros((2, 8, 1), np.float32), None),
    ],
)
def test_rows_that_no_codec_could_take_are_refused_and_stop_nothing(
    tmp_path: Path, rows: np.ndarray, dtype: str | None
) -> None:
    with Recorder.create(tmp_path / "r.acts", spec()) as recorder:
        with pytest.raises(RecordingError, match=r"expected|must be"):
            recorder.write(step_of(1, [("a", 0, 2)]), [Frame(SITES[0], rows, dtype)])
        step = step_of(2, [("a", 2, 2)])
        recorder.write(step, frames_of(step, SITES))
    assert Recording.open(tmp_path / "r.acts").labels()["position"].tolist() == [2, 3]


def test_closing_goes_on_where_an_interrupt_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the workers finish must not cost the labels."""
    recorder = Recorder.create(tmp_path / "r.acts", spec(), PipelineOptions(flush_seconds=60))
    step = step_of(1, [("a", 0, 3)])
    recorder.write(step, frames_of(step, SITES))

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recorder.close()
    recorder.close()
    found = Recording.open(tmp_path / "r.acts")
    assert (found.n_rows, len(found[SITES[0]]), found.complete) == (3, 3, True)


def test_rows_that_reach_the_store_after_the_mark_was_taken_are_not_acknowledged_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block with a later number than the one that is looked at may not be in the file yet."""
    with Recorder.create(tmp_path / "r.acts", spec(), PipelineOptions(flush_seconds=60)) as recorder:
        step = step_of(1, [("a", 0, 3)])
        recorder.write(step, frames_of(step, SITES))
        write_labels = recorder._labels.write

        def labels_and_then_a_block() -> int:
            number = write_labels()
            recorder._queues.drain(3)
            return number

        monkeypatch.setattr(recorder._labels, "write", labels_and_then_a_block)
        recorder._acknowledge()
        monkeypatch.undo()
        assert recorder._acknowledged._milestones[-1][0] == 0
