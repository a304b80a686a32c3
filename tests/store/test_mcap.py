"""Stock MCAP readers read a segment."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import McapReader, NonSeekingReader, SeekingReader, make_reader
from mcap.records import Attachment, DataEnd, Footer, Message, Statistics
from mcap.stream_reader import StreamReader
from support.store.parts import CHANNELS, Direct, body, make

from actscope.store import ENTRY, StoreOptions, StoreReader, recover

HEAD = 97 + 8  # our own head, before the body, in an MCAP message


class Pipe(io.BytesIO):
    """Bytes that cannot be sought in."""

    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "recovered"])
@pytest.mark.parametrize("direct", ["auto", "no"])
def test_mcap_readers_open_every_segment(tmp_path: Path, closed: bool, direct: Direct) -> None:
    """Seeking, non-seeking and stream reader: channels, messages with times and bodies, statistics, attachment, CRCs."""
    options = StoreOptions(direct=direct, segment_bytes=1 << 14, buffer_bytes=1 << 14, commit_seconds=0.001)
    path = make(tmp_path / "r", 100, options, closed=closed)
    if not closed:
        recover(path)
    for kind in (lambda one: make_reader(io.BytesIO(one.read_bytes()), validate_crcs=True), _non_seeking):
        number = 0
        for segment in sorted(path.glob("segment-*.mcap")):
            reader = kind(segment)
            assert isinstance(reader, SeekingReader | NonSeekingReader)
            number = _check(reader, number)
        assert number == 100


def _non_seeking(segment: Path) -> McapReader:
    reader = make_reader(Pipe(segment.read_bytes()), validate_crcs=True)
    assert isinstance(reader, NonSeekingReader)
    return reader


def _check(reader: SeekingReader | NonSeekingReader, number: int) -> int:
    for schema, channel, message in reader.iter_messages(log_time_order=False):
        assert schema is not None and schema.name == "actscope"
        if channel.topic == "actscope/seal":
            continue
        number += 1
        assert channel.topic == CHANNELS[number % 2] and message.sequence == number
        assert message.log_time == message.publish_time == number * 1000
        assert message.data[HEAD : HEAD + len(body(number))] == body(number)
    return number


def test_the_summary_describes_what_is_in_the_segment(tmp_path: Path) -> None:
    """Statistics count the messages by channel, the index attachment is the ENTRY array, the manifest is a metadata record."""
    path = make(tmp_path / "r", 10)
    segment = path / "segment-000001.mcap"
    with segment.open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert summary is not None and isinstance(summary.statistics, Statistics)
        assert [channel.topic for channel in summary.channels.values()] == ["actscope/seal", *CHANNELS]
        assert summary.statistics.channel_message_counts == {0: 1, 1: 5, 2: 5}
        assert (summary.statistics.message_start_time, summary.statistics.message_end_time) == (1000, 10_000)
        (attachment,) = reader.iter_attachments()
        assert np.array_equal(np.frombuffer(attachment.data, ENTRY), StoreReader.open(path).entries)
        (metadata,) = reader.iter_metadata()
        assert metadata.metadata["json"].encode() == (path / "manifest.json").read_bytes()


def test_records_come_in_the_order_that_the_format_asks_for(tmp_path: Path) -> None:
    """Stream reader with CRC checks: messages, then the attachment, DataEnd, summary, footer at the very end."""
    path = make(tmp_path / "r", 5)
    with (path / "segment-000001.mcap").open("rb") as file:
        kinds = [type(record) for record in StreamReader(file, validate_crcs=True).records]
        assert file.read() == b""
    assert kinds.count(Message) == 6 and kinds[-1] is Footer
    assert kinds.index(Attachment) < kinds.index(DataEnd) < kinds.index(Statistics)
