"""manifest.json: immutable description of a recording."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from actscope.errors import RecordingDamaged, RecordingError
from actscope.runtime.decoding import decode_json
from actscope.runtime.publish import publish_file
from actscope.store.files import naming, read_file
from actscope.store.format.checksum import crc32c_of

NAME = "manifest.json"
FORMAT = "actscope-store"
VERSION = 1
MAX_BYTES = 64 << 20


class _Form(msgspec.Struct):
    """What every version of the file has."""

    format: object
    version: object


class _Whole(msgspec.Struct):
    """The file's fields in this version."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{1,8}$")]
    channels: tuple[str, ...]
    manifest: dict[str, object]


@dataclass(frozen=True, slots=True)
class Manifest:
    """User-provided facts and channel names. `text` is the file's exact content; every segment carries a copy."""

    text: str
    recording: int = field(init=False)  # 32 random bits that every message head repeats
    channels: tuple[str, ...] = field(init=False)
    facts: dict[str, object] = field(init=False)

    def __post_init__(self) -> None:
        what = f"{NAME}: not the manifest of a recording"
        form = decode_json(self.text, _Form, RecordingDamaged, what)
        known = form.format, form.version
        if known != (FORMAT, VERSION):
            raise RecordingError(
                f"{NAME}: format {known}, this reads {(FORMAT, VERSION)}; a newer actscope may have written it"
            )
        whole = decode_json(self.text, _Whole, RecordingDamaged, what)
        fields = ("recording", int(whole.id, 16)), ("channels", whole.channels), ("facts", whole.manifest)
        for name, value in fields:
            object.__setattr__(self, name, value)

    @classmethod
    def make(cls, recording: int, channels: Sequence[str], facts: Mapping[str, object]) -> Manifest:
        """Return a new manifest. Raises RecordingError when the facts are not JSON or the channels are not valid."""
        if (
            isinstance(channels, str)
            or len(set(channels)) != len(channels)
            or not all(channels)
            or len(channels) >= 1 << 16
        ):
            raise RecordingError(f"channels must be fewer than 65536 different names, not {list(channels)[:8]}")
        whole = {"format": FORMAT, "version": VERSION, "id": f"{recording:08x}", "channels": list(channels)}
        try:
            text = json.dumps({**whole, "manifest": facts}, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RecordingError(f"the manifest cannot be written as JSON: {error}") from error
        return cls(text)

    @property
    def crc(self) -> int:
        """Return the CRC32C of the file, which the watermark repeats."""
        return crc32c_of((self.text.encode(),))

    def publish(self, directory: Path) -> None:
        """Publish the file atomically. From then on the directory is a recording."""
        publish_file(directory / NAME, self.text.encode())


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a recording. Raises FileNotFoundError when absent, RecordingDamaged when it is not valid."""
    path = directory / NAME
    data = read_file(path, MAX_BYTES + 1)
    return manifest_from(data, path)


def manifest_from(data: bytes, path: Path) -> Manifest:
    """Parse a manifest. Raises RecordingDamaged when it is not valid."""
    if len(data) > MAX_BYTES:
        raise RecordingDamaged(f"{path}: more than {MAX_BYTES} bytes, which no manifest has")
    try:
        return Manifest(data.decode())
    except UnicodeDecodeError as error:
        raise RecordingDamaged(f"{path}: not UTF-8: {error}") from error


def publish_manifest(directory: Path, manifest: Manifest) -> None:
    """Publish the manifest. Raises RecordingError, which names the file, on failure."""
    with naming(directory / NAME, "writing"):
        manifest.publish(directory)
