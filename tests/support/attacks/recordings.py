"""Readers of recordings: files, messages with right checksums and wrong contents, labels, codecs, packet streams."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import zstandard
from support.attacks.fuzzing import Target
from support.attacks.mutations import changed
from support.recordings.made import frames_of, step_of

from actscope.codecs import decode, encoder
from actscope.compat import PacketStreamWriter, analyze_activations_with_tokens, read_packet_stream, token_files
from actscope.compat.token_files import TrackedToken
from actscope.recording.export import export
from actscope.recording.export.options import ExportOptions
from actscope.recording.format import records, row_labels
from actscope.recording.importing import import_packets
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder
from actscope.recording.writing.resume import continuation_of
from actscope.store import Store, StoreOptions, StoreReader

SITES = ("layers.0.resid_post", "layers.1.resid_post")
_STORE = StoreOptions(direct="no", preallocate=False, buffer_bytes=1 << 16, commit_seconds=60)
_KEY_CHANCE = 0.5


def record(path: Path) -> Path:
    """A small recording with two sites, two codecs, marks, texts and drops."""
    spec = RecordingSpec(
        SITES, codec="lossless", codecs={SITES[1]: "error_bounded:1e-3"}, model={"name": "m", "d_model": 8}
    )
    with Recorder.create(path, spec, PipelineOptions(workers=1, store=_STORE)) as recorder:
        recorder.texts = lambda ids: [f"t{i}" for i in ids]
        for number in range(1, 6):
            step = step_of(number, [("a", 4 * number, 4), ("b", number, 1)])
            recorder.write(step, frames_of(step, SITES))
        recorder.mark("a", "by hand")
    return path


def read_all(path: Path) -> None:
    """Use everything of a recording that a command or a user would."""
    recording = Recording.open(path)
    recording.describe()
    recording.summary()
    recording.wall_ns()
    for request in recording.requests[:4]:
        recording.tokens(request)
        recording.rows(SITES[0], request, slice(None))
    for site in recording.sites[:2]:
        for _ in recording.iter_rows(site, 3):
            pass
        recording[site].errors()
    recording.verify()
    continuation_of(StoreReader.open(path))


class Messages:
    """The messages of a recording, written again by the store with one of them changed: all checksums are right."""

    def __init__(self, source: Path, scratch: Path) -> None:
        self._reader = StoreReader.open(source)
        self._scratch = scratch
        self.wire = [msgspec.msgpack.encode((int(e["channel"]), bytes(e["key"]), bytes(self._reader.read(e)), int(e["time_ns"])))
                     for e in self._reader.entries]  # fmt: skip
        self._all = [msgspec.msgpack.decode(one) for one in self.wire]

    def change(self, seed: bytes, chance: random.Random) -> bytes:
        """Change the key or the body of a message, as (number, key, body). Labels are changed inside of their zstd frame."""
        number = self.wire.index(seed)
        _, key, body, _ = self._all[number]
        if chance.random() < _KEY_CHANCE:
            key = changed(key, chance)[:64].ljust(64, b"\0")
        elif body[:4] == b"\x28\xb5\x2f\xfd" and chance.random() < 0.8:
            body = zstandard.ZstdCompressor().compress(changed(zstandard.ZstdDecompressor().decompress(body), chance))
        else:
            body = changed(body, chance)
        return msgspec.msgpack.encode((number, key, body))

    def read(self, data: bytes) -> None:
        """Write all messages with one in place of its original, and read the recording."""
        found = msgspec.msgpack.decode(data)
        number, key, body = found if len(found) == 3 else (-1, b"", b"")
        shutil.rmtree(self._scratch, ignore_errors=True)
        with Store.create(
            self._scratch, manifest=self._reader.manifest, channels=self._reader.channels, options=_STORE
        ) as store:
            for i, (channel, own_key, own_body, time_ns) in enumerate(self._all):
                new_key, new_body = (key, body) if i == number else (own_key, own_body)
                store.append(self._reader.channels[channel], new_key, [new_body], time_ns)
        read_all(self._scratch)


class Files:
    """The files of a recording, one of them replaced by the input."""

    def __init__(self, source: Path, scratch: Path, name: str) -> None:
        self._source, self._scratch, self._name = source, scratch, name

    def read(self, data: bytes) -> None:
        """Read the recording with the input in the file's place."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        shutil.copytree(self._source, self._scratch)
        (self._scratch / self._name).write_bytes(data)
        read_all(self._scratch)


def _codec_targets() -> Iterator[Target]:
    rows = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    for spec in ("lz4", "zstd", "shuffle_lz4", "shuffle_zstd", "lossless", "error_bounded:1e-3"):
        encoded = encoder(spec).encode(rows, "float32")
        code = encoded.codec
        yield Target(f"codec {spec}", [bytes(encoded.payload)],
                     lambda data, code=code: decode(code, data, 64, 48, "float32"), 400)  # type: ignore[misc]  # fmt: skip
    svd = encoder("svd:4")
    state = b""
    for _ in range(40):
        encoded = svd.encode(np.random.default_rng(1).standard_normal((64, 48)).astype(np.float32), "float32")
        state = encoded.new_state or state
    payload = bytes(encoded.payload)
    yield Target("codec svd", [payload], lambda data: decode(encoded.codec, data, 64, 48, "float32", state), 300)
    yield Target(
        "codec svd's state", [state], lambda data: decode(encoded.codec, payload, 64, 48, "float32", data), 300
    )


def targets(folder: Path) -> Iterator[Target]:
    """Return the readers of this group."""
    source = record(folder / "whole.acts")
    for path in sorted(source.iterdir()):
        files = Files(source, folder / "r.acts", path.name)
        yield Target(f"recording's {path.name}", [path.read_bytes()], files.read, 60)
    messages = Messages(source, folder / "m.acts")
    yield Target("recording's messages", messages.wire, messages.read, 350, messages.change)
    labels = row_labels.encode([(step_of(n, [("a", n, 3), ("é", 9, 1)]), 4 * n) for n in range(6)])
    yield Target("labels", [labels], row_labels.decode, 500)
    plain = zstandard.ZstdDecompressor().decompress(labels)
    packed = zstandard.ZstdCompressor().compress
    yield Target("labels, unpacked", [plain], lambda data: row_labels.decode(packed(data)), 800)
    mark, token = records.Mark("a", "why", 1, 2), records.Tokens({1: "x"}, [records.Token("a", 1, 2, "t", 3)])
    drops, session = records.Drops([records.Drop("s", 1, 2)]), records.Session(1, 2, "b", "v", 0, stats={"a": 1})
    for one in (mark, token, drops, session):
        kind = type(one)
        yield Target(f"record {kind.__name__}", [records.write(one)],
                     lambda data, kind=kind: records.read(data, kind), 300)  # type: ignore[misc]  # fmt: skip
    yield from _codec_targets()
    export(Recording.open(source), folder / "whole.packets", "packets", options=ExportOptions())

    def imported(data: bytes) -> None:
        (folder / "changed.packets").write_bytes(data)
        shutil.rmtree(folder / "imported.acts", ignore_errors=True)
        import_packets(folder / "changed.packets", folder / "imported.acts")

    yield Target("packet stream", [(folder / "whole.packets").read_bytes()], imported, 150)
    yield from _older_files(folder)


def _older_files(folder: Path) -> Iterator[Target]:
    """Files of the older framework: compressed packets, tokens, and a checkpoint of tokens."""
    stream = folder / "old.stream"
    for compression in ("lz4", "zstd"):
        with PacketStreamWriter(stream, compression) as writer:
            for layer in range(3):
                writer.write(f"model.layers.{layer}", np.arange(50, dtype=np.float32))

        def unpacked(data: bytes, compression: str = compression) -> None:
            (folder / "changed.stream").write_bytes(data)
            for _ in read_packet_stream(folder / "changed.stream", compression, 1 << 20):
                pass

        yield Target(f"packet stream, {compression}", [stream.read_bytes()], unpacked, 200)
    tokens = [TrackedToken(0, 1, "a"), TrackedToken(1, 2, "é")]
    token_files.save_tokens(stream, tokens, 1.0)
    token_files.save_checkpoint(folder / "whole.ckpt.json", tokens, {"start_time": 1.0})

    def analysed(data: bytes) -> None:
        token_files.tokens_path(stream).write_bytes(data)
        analyze_activations_with_tokens(stream)

    def resumed(data: bytes) -> None:
        (folder / "changed.ckpt.json").write_bytes(data)
        token_files.load_checkpoint(folder / "changed.ckpt.json")

    yield Target("tokens of a packet stream", [token_files.tokens_path(stream).read_bytes()], analysed, 200)
    yield Target("checkpoint of tokens", [(folder / "whole.ckpt.json").read_bytes()], resumed, 200)
