"""The older framework's two JSON files beside a capture: its tokens, and a checkpoint of them.

    {output_path}_tokens.json   {"total_tokens", "tokens": [TrackedToken ...], "capture_duration_seconds"}
    {output_path}.ckpt.json     {"version": 1, "total_tokens", "last_checkpoint_time", "metadata": {"start_time", ...}, "tokens"}

Both are published atomically, and only their owner can read them. The checkpoint is removed when a capture ends without an error.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from actscope.errors import RecordingError
from actscope.runtime.decoding import decode_json
from actscope.runtime.publish import publish_file
from actscope.runtime.regular_files import read_regular

_MOST_BYTES = 1 << 30


class TrackedToken(msgspec.Struct, frozen=True):
    """One token that was recorded by hand."""

    token_index: int
    token_id: int
    token_text: str = ""


class TokenMetadata(msgspec.Struct, frozen=True):
    """Content of `{output_path}_tokens.json`."""

    total_tokens: int
    tokens: list[TrackedToken]
    capture_duration_seconds: float = 0.0


class TokenCheckpoint(msgspec.Struct, frozen=True):
    """Content of `{output_path}.ckpt.json`, as far as it is read."""

    tokens: list[TrackedToken]
    total_tokens: int = 0
    version: int = 1
    last_checkpoint_time: float = 0.0
    metadata: dict[str, float] = {}


def tokens_path(output_path: Path) -> Path:
    """Return the path of a capture's tokens."""
    return output_path.with_name(f"{output_path.name}_tokens.json")


def found_tokens(output_path: Path) -> TokenMetadata | None:
    """Return the tokens of a capture, or None if it has no such file.

    A `run.stream` of the older framework has its tokens in `run_tokens.json`.

    Raises:
        RecordingError: The file is not readable or not of this form.
    """
    older = output_path.with_name(output_path.name.replace(".stream", "_tokens.json"))
    path = next((p for p in (tokens_path(output_path), older) if p != output_path and p.is_file()), None)
    if path is None:
        return None
    data = read_regular(path, _MOST_BYTES, RecordingError)
    return decode_json(data, TokenMetadata, RecordingError, f"{path}: expected total_tokens and tokens")


def save_tokens(output_path: Path, tokens: list[TrackedToken], seconds: float) -> None:
    """Write the tokens of a capture. Raises OSError if that fails."""
    publish_file(tokens_path(output_path), _as_text(TokenMetadata(len(tokens), tokens, seconds)))


def load_checkpoint(path: Path) -> TokenCheckpoint | None:
    """Return a checkpoint, or None if there is none. Raises RecordingError if it is damaged."""
    try:
        data = read_regular(path, _MOST_BYTES, RecordingError)
    except FileNotFoundError:
        return None
    what = f"{path}: no checkpoint of tokens; move it away to go on without the tokens so far"
    return decode_json(data, TokenCheckpoint, RecordingError, what)


def save_checkpoint(path: Path, tokens: list[TrackedToken], metadata: dict[str, float]) -> None:
    """Write a checkpoint. Raises OSError if that fails."""
    publish_file(path, _as_text(TokenCheckpoint(tokens, len(tokens), 1, time.time(), metadata)))


def _as_text(content: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2)
