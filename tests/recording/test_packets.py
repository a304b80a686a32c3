"""The packet stream: what is written is read, and what is not a stream is refused with the byte at which it went wrong."""

from __future__ import annotations

import io
import mmap
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.errors import RecordingError
from actscope.recording.format.packets import MAX_NAME, Packet, PacketName, PacketWriter, read_packets, scan_packets

names = st.text(min_size=1, max_size=40).filter(lambda s: s.encode("utf-8", "ignore").decode() == s)


def stream(*packets: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    for name, data in packets:
        PacketWriter(file).write(name, data)
    return file.getvalue()


def test_a_packet_is_two_lengths_in_network_order_a_name_and_its_data() -> None:
    assert stream(("äb", b"xyz")) == struct.pack("!HI", 3, 3) + "äb".encode() + b"xyz"


@given(st.lists(st.tuples(names, st.binary(max_size=100)), max_size=6))
def test_what_is_written_is_read_again(packets: list[tuple[str, bytes]]) -> None:
    raw = stream(*packets)
    found = list(read_packets(io.BytesIO(raw)))
    assert [(p.name, p.data) for p in found] == packets
    assert [p.offset for p in found] == [len(stream(*packets[:i])) for i in range(len(packets))]


def test_a_scan_finds_the_same_packets_without_reading_their_data(tmp_path: Path) -> None:
    raw = stream(("one", b"12345"), ("two", b""), ("three", os.urandom(3000)))
    path = tmp_path / "s"
    path.write_bytes(raw)
    with path.open("rb") as file:
        found = [(e.name, raw[e.begin : e.begin + e.length]) for e in scan_packets(file)]
    assert found == [(p.name, p.data) for p in read_packets(io.BytesIO(raw))]


def test_every_truncation_is_an_error_that_names_the_packets_byte_or_a_clean_end(tmp_path: Path) -> None:
    packets = [("first", b"abc"), ("second", b"defgh")]
    raw, edges = stream(*packets), {0, 14, len(stream(*packets))}
    assert len(stream(packets[0])) == 14
    for length in range(len(raw)):
        path = tmp_path / "s"
        path.write_bytes(raw[:length])
        readers = (lambda cut=raw[:length]: list(read_packets(io.BytesIO(cut))), lambda path=path: scan(path))
        for read in readers:
            if length in edges:
                assert len(read()) == sorted(edges).index(length)
            else:
                with pytest.raises(RecordingError, match=f"the packet at byte {14 if length > 14 else 0} is cut off"):
                    read()


def scan(path: Path) -> list[object]:
    with path.open("rb") as file:
        return list(scan_packets(file))


def test_a_head_that_claims_4_gib_costs_no_more_memory_than_there_are_bytes() -> None:
    """Memory is not allocated by the claim; the error says how many bytes there were."""
    import tracemalloc

    raw = struct.pack("!HI", 1, 0xFFFFFFFF) + b"n" + b"x" * 100
    tracemalloc.start()
    with pytest.raises(RecordingError, match=r"expected 4294967295 bytes of data for 'n' at byte 7, found 100 bytes"):
        list(read_packets(io.BytesIO(raw)))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (struct.pack("!HI", 2, 0) + b"\xff\xfe", "at byte 9 is not UTF-8"),
        (struct.pack("!HI", 0, 3) + b"abc", "at byte 9 has no name"),
    ],
)
def test_a_name_that_is_none_is_refused_with_its_byte(raw: bytes, says: str) -> None:
    with pytest.raises(RecordingError, match=says):
        list(read_packets(io.BytesIO(stream(("ok", b"1")) + raw)))


def test_names_and_data_that_the_form_cannot_say_are_refused_when_written() -> None:
    writer = PacketWriter(io.BytesIO())
    writer.write("n" * MAX_NAME, b"")
    with pytest.raises(RecordingError, match="a name has 1 to 65535 bytes, this one 65536"):
        writer.write("ä" * (MAX_NAME // 2 + 1), b"")
    with pytest.raises(RecordingError, match="this one 0"):
        writer.write("", b"")
    too_long = pytest.raises(RecordingError, match="4294967296 bytes are more than the form's 429")
    with mmap.mmap(-1, 1 << 32) as huge, memoryview(huge) as view, too_long:  # never touched: no memory
        writer.write("n", view)


@given(st.text(min_size=1, max_size=20), st.text(max_size=20), st.integers(0, 1 << 50))
def test_the_place_of_rows_survives_its_name(site: str, request_id: str, position: int) -> None:
    place = PacketName(site, request_id, position)
    if all(part.encode("utf-8", "ignore").decode() == part for part in (site, request_id)):
        assert PacketName.parse(place.name) == place
        assert place.name.count("/") == 2


@pytest.mark.parametrize("name", ["layers.3", "a/b", "a/b/c", "a/b/-1", "a/b/³", "/r/1", "a/b/1/2", "a/b/" + "9" * 19])
def test_other_names_are_no_places(name: str) -> None:
    assert PacketName.parse(name) is None


def test_the_data_of_a_packet_are_bytes() -> None:
    (packet,) = read_packets(io.BytesIO(stream(("n", memoryview(np.arange(3, dtype="<u2")).cast("B")))))  # type: ignore[arg-type]
    assert packet == Packet(0, "n", b"\0\0\1\0\2\0")
