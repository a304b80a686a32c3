"""Whatever is recorded, in whatever order, reads as a plain dictionary of rows would."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.recordings.made import rows_of, step_of

from actscope.frames import RowFlag
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder

SITES = ("layers.0.resid_post", "layers.1.mlp_out")


@dataclass(frozen=True)
class Pass:
    """One pass: lanes of (request, rows); sites that put nothing; whether it ends; whether the writer is closed after it."""

    lanes: list[tuple[str, int]]
    silent: frozenset[str]
    again: int  # positions to go back and compute again
    ends: bool
    resumes: bool


passes = st.builds(
    Pass,
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=3, unique_by=lambda lane: lane[0]),
    st.frozensets(st.sampled_from(SITES), max_size=1),
    st.integers(0, 2),
    st.booleans() | st.just(True),
    st.sampled_from([False, False, False, True]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(passes, max_size=8), st.sampled_from([1, 200, 1 << 20]))
def test_a_recording_reads_like_a_dictionary(plan: list[Pass], block_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.acts"
        expected = record(path, plan, PipelineOptions(block_bytes=block_bytes))
        found = Recording.open(path)
        assert found.damage == [] and found.complete
        for site in SITES:
            for request in "abc":
                want = {p: row for (s, r, p), row in expected.items() if (s, r) == (site, request)}
                if request not in found.requests:
                    assert not want
                    continue
                rows = found.rows(site, request)
                assert rows.labels["position"].tolist() == sorted(want)
                assert [row.tolist() for row in rows.values] == [want[p].tolist() for p in sorted(want)]


def record(path: Path, plan: list[Pass], options: PipelineOptions) -> dict[tuple[str, str, int], np.ndarray]:
    """Record the passes; the newest row of each site, request and position, unless its pass did not end."""
    spec = RecordingSpec(SITES, "zstd")
    expected: dict[tuple[str, str, int], np.ndarray] = {}
    after = dict.fromkeys("abc", 0)
    recorder = Recorder.create(path, spec, options)
    for number, one in enumerate(plan, start=1):
        lanes = [(request, max(0, after[request] - one.again), n) for request, n in one.lanes]
        step = step_of(number, lanes)
        step.meta["flags"] |= np.uint32(RowFlag.RECOMPUTED if one.again else 0)
        recorder.begin(step)
        for site in SITES:
            rows = None if site in one.silent else rows_of(step, site) + number
            if rows is not None and step.n_rows:
                recorder.put(step, site, rows)
            for span in step.spans if one.ends else ():
                for i in range(span.n_rows):
                    place = (site, span.request, span.first_position + i)
                    if rows is None:
                        expected.pop(place, None)  # the newest computation was not kept: no older row stands in for it
                    else:
                        expected[place] = rows[span.offset + i]
        if one.ends:
            after |= {request: first + n for request, first, n in lanes}
        recorder.end(step, complete=one.ends)
        if one.resumes:
            recorder.close()
            recorder = Recorder.create(path, spec, options, resume=True)
    recorder.close()
    return expected
