"""The older framework's packet streams: written, read with caps, analysed, and made a recording of."""

from __future__ import annotations

import json
import struct
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import actscope
from actscope.compat import (
    PacketStreamWriter,
    analyze_activations,
    analyze_activations_with_tokens,
    read_packet_stream,
    unpack_packet_stream,
)
from actscope.errors import RecordingError, SettingsError
from actscope.recording.importing import ImportOptions, import_packets

ROWS = np.arange(60, dtype=np.float16).reshape(5, 12)


def written(path: Path, compression: str) -> Path:
    with PacketStreamWriter(path, compression) as writer:
        writer.write("model.layers.0", ROWS)
        writer.write("model.layers.1", (ROWS * 2).tobytes())
    return path


def test_a_packet_is_what_the_older_framework_wrote(tmp_path: Path) -> None:
    """Two lengths in network order, the name in UTF-8, and one lz4 frame."""
    raw = written(tmp_path / "a.stream", "lz4").read_bytes()
    name_length, data_length = struct.unpack("!HI", raw[:6])
    assert raw[6 : 6 + name_length] == b"model.layers.0"
    data = raw[6 + name_length : 6 + name_length + data_length]
    assert import_module("lz4.frame").decompress(data) == ROWS.tobytes()
    assert (tmp_path / "a.stream").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
def test_what_was_written_is_read(tmp_path: Path, compression: str) -> None:
    found = list(read_packet_stream(written(tmp_path / "a.stream", compression), compression))
    assert found == [("model.layers.0", ROWS.tobytes()), ("model.layers.1", (ROWS * 2).tobytes())]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_packet_that_unpacks_to_more_than_the_cap_is_refused(tmp_path: Path, compression: str) -> None:
    with PacketStreamWriter(tmp_path / "bomb.stream", compression) as writer:
        writer.write("bomb", bytes(1 << 20))
    assert (tmp_path / "bomb.stream").stat().st_size < 1 << 14
    with pytest.raises(RecordingError, match="at byte 0 unpacks to more than 1000000 bytes"):
        list(read_packet_stream(tmp_path / "bomb.stream", compression, max_packet_bytes=1_000_000))
    with pytest.raises(RecordingError, match=r"at most 10 are accepted"):
        list(read_packet_stream(tmp_path / "bomb.stream", compression, max_packet_bytes=10))


@pytest.mark.parametrize(("one", "other"), [("lz4", "zstd"), ("zstd", "lz4"), ("none", "lz4"), ("none", "zstd")])
def test_another_compression_is_an_error_that_names_the_packet(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(RecordingError, match=f"'model.layers.0' at byte 0 is not {other}"):
        list(read_packet_stream(written(tmp_path / "a.stream", one), other))


def test_every_cut_is_an_error_when_read_and_is_told_when_analysed(tmp_path: Path) -> None:
    """A stream that a crash has cut off: the reader raises with the byte, the analysis counts what is whole and says so."""
    whole = written(tmp_path / "a.stream", "lz4").read_bytes()
    second = len(whole) // 2
    for size in range(second + 1, len(whole)):
        (tmp_path / "cut.stream").write_bytes(whole[:size])
        with pytest.raises(RecordingError, match=f"at byte {second}"):
            list(read_packet_stream(tmp_path / "cut.stream"))
        analysis = analyze_activations(tmp_path / "cut.stream")
        assert analysis["packets"] == 1 and f"byte {second}" in analysis["damage"]


def test_an_old_capture_is_analysed_with_its_tokens(tmp_path: Path) -> None:
    """`run.stream` beside the older framework's `run_tokens.json`."""
    path = written(tmp_path / "run.stream", "zstd")
    token = {"token_index": 0, "token_id": 5, "token_text": "a"}
    content = {"total_tokens": 2, "tokens": [token, token], "capture_duration_seconds": 0.5}
    (tmp_path / "run_tokens.json").write_text(json.dumps(content))
    analysis = analyze_activations_with_tokens(path)
    size = path.stat().st_size - 2 * (6 + len("model.layers.0"))
    assert analysis["per_layer"].keys() == {"model.layers.0", "model.layers.1"}
    assert (analysis["packets_per_token"], analysis["bytes_per_token"]) == (1.0, size / 2)
    (tmp_path / "run_tokens.json").write_text("[]")
    with pytest.raises(RecordingError, match=r"run_tokens\.json: expected total_tokens and tokens"):
        analyze_activations_with_tokens(path)


def test_an_old_stream_becomes_a_recording(tmp_path: Path) -> None:
    """Unpacked, then imported with the dtype and width that its packets do not say."""
    assert unpack_packet_stream(written(tmp_path / "a.stream", "lz4"), tmp_path / "plain", "lz4") == 2
    import_packets(tmp_path / "plain", tmp_path / "run.acts", ImportOptions(dtype="float16", width=12))
    assert (actscope.open(tmp_path / "run.acts")["model.layers.1"][:5] == ROWS * 2).all()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected one of lz4, zstd, none"):
        PacketStreamWriter(tmp_path / "a", "gzip")
    with pytest.raises(SettingsError, match="is the stream itself"):
        unpack_packet_stream(tmp_path / "a", tmp_path / "a")
    for call in (lambda: list(read_packet_stream(tmp_path / "none")), lambda: analyze_activations(tmp_path / "none")):
        with pytest.raises(RecordingError, match="there is no such packet stream"):
            call()
    with pytest.raises(RecordingError, match="cannot be written"):
        PacketStreamWriter(tmp_path / "no" / "a")
