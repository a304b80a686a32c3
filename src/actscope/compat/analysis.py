"""The older framework's analysis of a capture: counts and bytes, of a recording or of a packet stream."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from pathlib import Path
from typing import NotRequired, TypedDict

import msgspec

from actscope.compat.packet_stream import opened
from actscope.compat.token_files import found_tokens
from actscope.errors import RecordingError
from actscope.recording.format.packets import scan_packets
from actscope.recording.reading.recording import Recording

log = logging.getLogger("actscope.compat")


class LayerBytes(TypedDict):
    """Packets and stored bytes of one layer."""

    count: int
    bytes: int


class StreamAnalysis(TypedDict):
    """What is known of a capture. A packet of a recording is a block of rows; one of a stream is a tensor.

    `damage` is there if a stream is cut off: the counts are those before the cut. `tokens` is the number of rows per site of a
    recording. The last three come from `analyze_activations_with_tokens`.
    """

    stream_path: str
    compression: str
    packets: int
    total_compressed_bytes: int
    per_layer: dict[str, LayerBytes]
    tokens: NotRequired[int]
    damage: NotRequired[str]
    token_metadata: NotRequired[dict[str, object]]
    packets_per_token: NotRequired[float]
    bytes_per_token: NotRequired[float]


def analyze_activations(stream_path: str | os.PathLike[str], compression: str = "") -> StreamAnalysis:
    """Return counts and sizes of a capture, without reading its rows.

    `actscope.open(path)` gives the rows, and `actscope analyze DIR` their statistics.

    Args:
        stream_path: A recording, or a packet stream of the older framework.
        compression: Name of a stream's compression, for the result. A recording knows its own.

    Returns:
        Its counts.

    Raises:
        RecordingError: There is nothing at the path, or it is neither.
        RecordingDamaged: Acknowledged bytes of the recording are missing.
    """
    path = Path(stream_path)
    return _of_recording(path) if path.is_dir() else _of_stream(path, compression)


def analyze_activations_with_tokens(stream_path: str | os.PathLike[str], framework: object = None) -> StreamAnalysis:
    """Return `analyze_activations`, with the tokens of a capture that tracked them, and packets and bytes per token.

    Without a file of tokens, a recording is divided by its own.

    Args:
        stream_path: A recording, or a packet stream of the older framework.
        framework: Has no effect: the recording knows how it was made.

    Raises:
        RecordingError: As `analyze_activations`; also if the file of tokens is not of its form.
    """
    analysis = analyze_activations(stream_path)
    metadata = found_tokens(Path(stream_path))
    if metadata is not None:
        analysis["token_metadata"] = msgspec.to_builtins(metadata)
    n_tokens = metadata.total_tokens if metadata is not None else analysis.get("tokens", 0)
    if n_tokens > 0 and analysis["packets"]:
        analysis["packets_per_token"] = analysis["packets"] / n_tokens
        analysis["bytes_per_token"] = analysis["total_compressed_bytes"] / n_tokens
    return analysis


def _of_recording(path: Path) -> StreamAnalysis:
    recording = Recording.open(path)
    layers: dict[str, LayerBytes] = {
        site: {"count": len(recording[site].blocks), "bytes": recording[site].sizes().stored}
        for site in recording.sites
    }
    codecs = sorted({str(codec) for codec in recording.info["codecs"].values()})
    return {**_analysis(path, ", ".join(codecs), layers), "tokens": recording.n_rows}


def _of_stream(path: Path, compression: str) -> StreamAnalysis:
    layers: dict[str, LayerBytes] = {}
    damage = ""
    with closing(opened(path)) as file:
        try:
            for entry in scan_packets(file, str(path)):
                layer = layers.setdefault(entry.name, {"count": 0, "bytes": 0})
                layer["count"] += 1
                layer["bytes"] += entry.length
        except RecordingError as error:
            if not layers:
                raise
            damage = str(error)
            log.warning("%s; the packets before it are counted", damage)
    analysis = _analysis(path, compression or "unknown", layers)
    return {**analysis, "damage": damage} if damage else analysis


def _analysis(path: Path, compression: str, layers: dict[str, LayerBytes]) -> StreamAnalysis:
    return {
        "stream_path": str(path),
        "compression": compression,
        "packets": sum(layer["count"] for layer in layers.values()),
        "total_compressed_bytes": sum(layer["bytes"] for layer in layers.values()),
        "per_layer": layers,
    }
