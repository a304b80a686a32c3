"""The parts of a gap between two tokens sum to it, whatever the time stamps say, and the sentence names the longest one."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.metrics.lines import (
    DeviceLatency,
    IoLine,
    LatencyBucket,
    OperationTotals,
    ProcessWaits,
    SystemLine,
    ThreadWaits,
    Waker,
)
from actscope.metrics.timeline.kernel import GapSpan, lines_around, meanwhile
from actscope.metrics.timeline.parts import PARTS, Gap, divide
from actscope.metrics.timeline.picture import picture
from actscope.metrics.timeline.sentence import milliseconds, sentence
from actscope.metrics.timeline.stamps import TimedPass, TokenStamps

MS = 1_000_000
TIMES = st.integers(0, 40)
PASSES = st.builds(TimedPass, st.integers(1, 9), *[TIMES] * 6, *[st.integers(0, 5)] * 3)
STAMPS = st.builds(
    TokenStamps,
    index=st.integers(0, 1),
    start_ns=TIMES,
    end_ns=TIMES,
    where=st.sampled_from(["client", "engine"]),
    passes=st.lists(PASSES, max_size=3),
    asked_ns=TIMES,
    read_ns=TIMES,
    sent_ns=TIMES,
    drained_ns=TIMES,
)


@given(STAMPS, st.lists(PASSES, max_size=5))
def test_the_parts_and_what_is_unexplained_sum_to_the_gap_for_any_stamps(
    stamps: TokenStamps, passes: list[TimedPass]
) -> None:
    gap = divide(stamps, passes)
    assert gap.ns == max(stamps.end_ns - stamps.start_ns, 0)
    assert sum(part.ns for part in gap.parts) + gap.unexplained_ns == gap.ns
    assert gap.unexplained_ns >= 0 and 0 <= gap.explained <= 1
    cursor = stamps.start_ns
    for part in gap.parts:
        assert part.name in PARTS and part.ns > 0 and part.start_ns >= cursor
        cursor = part.end_ns
    assert cursor <= max(stamps.end_ns, stamps.start_ns)
    assert sum(gap.sums().values()) == sum(part.ns for part in gap.parts)
    assert sentence(gap, None).endswith(".")


@given(st.lists(st.integers(1, 1000), min_size=9, max_size=9, unique=True), st.booleans())
def test_stamps_in_order_explain_the_whole_gap(times: list[int], has_drafts: bool) -> None:
    start, scheduled, begun, ended, published, sampling, sampled, read, sent = sorted(times)
    if has_drafts:
        published, sampling, sampled = sampled, published, sampling
    own = TimedPass(3, scheduled, begun, ended, published, sampling, sampled, 1, 0, 1)
    gap = divide(TokenStamps(5, start, sent + 7, "client", [own], 0, read, sent, sent + 7))
    assert (gap.unexplained_ns, gap.explained) == (0, 1.0)
    assert gap.sums()["pass"] == ended - begun and gap.sums()["sampling"] == sampled - sampling
    assert gap.sums()["delivery"] == read - max(sampled, published) and gap.sums()["send_buffer"] == 7


def ordinary() -> TokenStamps:
    """A token 30 ms after the one before: 2 ms waiting, 1 preparing, 20 pass, 1 publishing, 2 sampling, 2 delivery, 1, 1."""
    own = TimedPass(7, 2 * MS, 3 * MS, 23 * MS, 24 * MS, 24 * MS, 26 * MS, 4, 0, 4)
    return TokenStamps(9, 0, 30 * MS, "client", [own], 0, 28 * MS, 29 * MS, 30 * MS)


def test_the_sentence_names_the_longest_part_and_who_shared_the_pass() -> None:
    assert sentence(divide(ordinary()), 25 * MS) == (
        "Token 9 came 30 ms after token 8 (the median is 25 ms): 20 ms of it the model computed its pass, which it shared with 3 "
        "other requests."
    )


def test_a_pass_of_others_in_a_wait_is_a_part_of_its_own() -> None:
    stamps = ordinary()
    late = [one._replace(**{name: getattr(one, name) + 50 * MS for name in one._fields[1:7]}) for one in stamps.passes]
    stamps = replace(stamps, passes=late, end_ns=80 * MS, read_ns=78 * MS, sent_ns=79 * MS, drained_ns=80 * MS)
    prompt = TimedPass(6, 1 * MS, 2 * MS, 44 * MS, 45 * MS, 45 * MS, 46 * MS, 512, 511, 2)
    gap = divide(stamps, [prompt, *late])
    assert gap.sums()["other_passes"] == 45 * MS and gap.sums()["scheduling"] == 7 * MS
    assert "45 ms of it the engine ran 1 pass of 2 requests with 511 prompt tokens without this request." in sentence(
        gap
    )


def test_a_client_that_reads_slowly_is_named() -> None:
    gap = divide(replace(ordinary(), end_ns=900 * MS, drained_ns=900 * MS))
    assert "871 ms of it the token lay in the gateway's send buffer" in sentence(gap)


@pytest.mark.parametrize("field", ["scheduled_ns", "begun_ns", "ended_ns", "sampled_ns"])
def test_time_beside_a_border_that_is_not_known_is_unexplained(field: str) -> None:
    stamps = ordinary()
    gap = divide(replace(stamps, passes=[one._replace(**{field: 0}) for one in stamps.passes]))
    assert 0 < gap.unexplained_ns < gap.ns


def test_without_its_pass_only_the_way_through_the_gateway_is_explained() -> None:
    gap = divide(replace(ordinary(), passes=[]))
    assert gap.sums() == {"gateway": MS, "send_buffer": MS} and gap.unexplained_ns == 28 * MS
    assert "28 ms of it is not explained" in sentence(gap)


def test_a_pass_that_began_after_the_token_had_come_did_not_draw_it() -> None:
    stamps = ordinary()
    gap = divide(replace(stamps, passes=[one._replace(begun_ns=29 * MS, ended_ns=40 * MS) for one in stamps.passes]))
    assert gap.sums() == {"gateway": MS, "send_buffer": MS}


def test_a_token_of_the_same_chunk_has_a_gap_without_length() -> None:
    gap = divide(replace(ordinary(), start_ns=30 * MS))
    assert (gap.ns, gap.parts, gap.unexplained_ns, gap.explained) == (0, (), 0, 1.0)
    assert sentence(gap) == "Token 9 came together with token 8."


def test_the_first_token_waits_in_the_queue_for_the_passes_of_its_prompt() -> None:
    chunks = [
        TimedPass(1, 5 * MS, 6 * MS, 16 * MS, 17 * MS, 0, 0, 512, 512, 1),
        TimedPass(2, 18 * MS, 19 * MS, 29 * MS, 30 * MS, 31 * MS, 32 * MS, 100, 100, 1),
    ]
    gap = divide(TokenStamps(0, 0, 36 * MS, "client", chunks, 1 * MS, 34 * MS, 35 * MS, 36 * MS))
    assert gap.unexplained_ns == 0 and gap.sums()["request"] == MS and gap.sums()["queue"] == 4 * MS
    assert gap.sums()["pass"] == 20 * MS
    assert sentence(gap) == (
        "Token 0 came 36 ms after the request: 20 ms of it the model computed its 2 passes, which it had to itself, with 612 "
        "prompt tokens."
    )


def test_the_picture_has_one_line_a_part_where_it_lies() -> None:
    gap: Gap = divide(replace(ordinary(), passes=[]))
    bars = [(part.name, part.start_ns, part.ns) for part in gap.parts]
    assert picture(gap.stamps.start_ns, gap.ns, bars, gap.unexplained_ns, width=30) == [
        "  gateway            1 ms                              █",
        "  send_buffer        1 ms                               █",
        "  unexplained       28 ms",
    ]
    assert picture(0, 0, [], 0) == []


def test_lengths_have_three_digits() -> None:
    assert [milliseconds(ns) for ns in (1234 * MS, 99_960_000, 1_234_567, 12_345)] == [
        "1234 ms", "100 ms", "1.23 ms", "0.012 ms",
    ]  # fmt: skip


def line(end_ns: int, waits: dict[str, int], boot: str = "here", **more: object) -> SystemLine:
    """A line of half a second: what held up the engine's thread, which worked, beside a process that is not watched."""
    worker = ThreadWaits("actscope-model", waits, on_cpu_ns=100 * MS, **more)  # type: ignore[arg-type]
    idle = ThreadWaits("idle", {"lock": 500 * MS, "stopped": 2 * MS}, on_cpu_ns=MS)
    engine = ProcessWaits("python", {}, {"7": worker, "8": idle}, found_as="engine builtin")
    other = ProcessWaits("sh", {}, {"9": ThreadWaits("sh", {"runnable": 10**9})}, on_cpu_ns=450 * MS)
    return SystemLine(
        0.0, 0.5, {}, processes={"7": engine, "9": other}, source="bpf", monotonic_ns=end_ns, boot_id=boot
    )


GAP = GapSpan(1200 * MS, 1700 * MS, "here")


def test_the_kernels_lines_around_a_gap_say_which_thread_of_an_engine_was_held_up() -> None:
    lines = [
        line(1000 * MS, {"runnable": 5 * MS}),
        line(1500 * MS, {"runnable": 200 * MS, "sleep": 300 * MS}),
        line(2000 * MS, {"io": 40 * MS}),
        line(2500 * MS, {"io": 900 * MS}),
        line(1500 * MS, {"stopped": 500 * MS}, boot="before"),
    ]
    assert lines_around(lines, GAP) == lines[1:3]
    assert meanwhile(lines, [], GAP) == [
        "The engine was held up: its thread actscope-model waited for a processor for 200 ms of these 500 ms, while others "
        "ran: sh (9) for 900 ms.",
        "What the kernel saw of engines in the 1 s around it (by bpf):",
        "  threads named actscope-model waited for a processor for 200 ms in all",
        "  threads named actscope-model waited for a block device for 40 ms in all",
        "  threads named idle were stopped for 4 ms in all",
    ]
    assert "no line for that time" in meanwhile([], [], GAP)[0]
    assert "no line for that time" in meanwhile(lines, [], GapSpan(1200 * MS, 1700 * MS, "another"))[0]
    short = meanwhile([line(1500 * MS, {"sleep": 1})], [], GAP)
    assert not short[0].startswith("The engine was held up")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("io", "waited for a block device for 300 ms of these 500 ms; the busiest device was sdb (disk), with 9 requests, 99 % "
         "of them within 16.4 ms."),
        ("fault", "waited for a page for 300 ms of these 500 ms, in 12 page faults; the busiest device was sdb (disk), with 9"),
        ("stopped", "was stopped for 300 ms of these 500 ms, until kill (99) let it go on."),
        ("lock", "waited for a lock for 300 ms of these 500 ms, until kill (99) woke it."),
    ],
)  # fmt: skip
def test_each_cause_is_named_with_what_is_known_of_it(cause: str, words: str) -> None:
    """A wait counts as far as its interval overlaps the gap. Idle threads, which wait for locks too, are not named."""
    waker = Waker(99, 99, "kill", 1, 400 * MS)
    found = line(1500 * MS, {cause: 480 * MS}, page_faults=12, woken_by=[waker])
    fast = DeviceLatency("sda", 100, [], operations={"read": OperationTotals(100, latency_us=20.0)})
    slow = DeviceLatency(
        "sdb",
        9,
        [LatencyBucket(13, 9, 8192, 16383)],
        label="disk",
        operations={"write": OperationTotals(9, latency_us=9e3)},
    )
    io = IoLine(0.0, 0.5, [fast, slow], monotonic_ns=1500 * MS, boot_id="here")
    said = meanwhile([found], [io, replace_boot(io)], GAP)
    assert words in said[0]


def replace_boot(io: IoLine) -> IoLine:
    return msgspec.structs.replace(io, boot_id="before")
