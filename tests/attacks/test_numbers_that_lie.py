"""Sizes and counts in files, near the edge of their types: refused before memory is taken for them, by an error of actscope.

The attacks run in a process of their own, and the peak of its resident memory may grow by 64 MiB with each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
MOST_ADDED_MB = 64

_SETUP = """
import resource, struct, sys, json
from pathlib import Path
import numpy as np
from actscope.errors import ActscopeError
from actscope.recording.format.index_keys import KEY
from actscope.recording.format import row_labels
from actscope.recording.reading.recording import Recording
from actscope.store import Store, StoreReader
from support.attacks.recordings import _STORE, read_all, record
place = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

def rewritten(change):
    source = StoreReader.open(record(folder / "whole.acts"))
    with Store.create(folder / "r.acts", manifest=source.manifest, channels=source.channels, options=_STORE) as store:
        for entry in source.entries:
            key = np.frombuffer(bytes(entry["key"]), KEY).copy()
            body = change(key, bytes(source.read(entry)))
            store.append(source.channels[int(entry["channel"])], key.tobytes(), [body], int(entry["time_ns"]))
    return folder / "r.acts"

def attempt(read):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read()
        said = "nothing"
    except ActscopeError as error:
        said = f"{type(error).__name__}: {error}"
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"said": said, "added_mb": (after - before) / 1024}), flush=True)
"""
_EACH = """
folder = place / str(NUMBER)
folder.mkdir()
CODE
"""

_BLOCKS = """
def change(key, body):
    if key["kind"][0] == 1:
        key[FIELD] = VALUE
    return body
path = rewritten(change)
attempt(lambda: read_all(path))
"""

ATTACKS = {
    **{
        f"a block of {field} {value}": _BLOCKS.replace("FIELD", repr(field)).replace("VALUE", str(value))
        for field, value in (
            ("n_rows", (1 << 32) - 1),
            ("n_rows", 1 << 28),
            ("n_rows", 0),
            ("width", (1 << 32) - 1),
            ("width", 0),
            ("first_row", (1 << 64) - 1),
            ("first_row", (1 << 63) - 1),
            ("dtype", 200),
            ("state", 77),
            ("codec", 99),
        )
    },
    "labels whose key announces 4 billion rows": """
def change(key, body):
    if key["kind"][0] == 3:
        key["n_rows"] = (1 << 32) - 1
    return body
path = rewritten(change)
attempt(lambda: read_all(path))
""",
    "labels in a zstd frame that states 1 TiB": """
import zstandard
def change(key, body):
    return frame if key["kind"][0] == 3 else body
small = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1 << 17))
frame = small[:4] + bytes([small[4] | 0xC0 | 0x20]) + struct.pack("<Q", 1 << 40) + small[9:]
assert zstandard.get_frame_parameters(frame).content_size == 1 << 40
path = rewritten(change)
attempt(lambda: read_all(path))
""",
    "a block in a zstd frame that states 1 TiB": """
from actscope.codecs import decode
import zstandard
small = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1 << 17))
frame = small[:4] + bytes([small[4] | 0xC0 | 0x20]) + struct.pack("<Q", 1 << 40) + small[9:]
attempt(lambda: decode(2, frame, 1 << 20, 1 << 18, "float32"))
""",
    "an lz4 block that claims 1 GiB": """
from actscope.codecs import decode
attempt(lambda: decode(1, bytes(100), 1 << 14, 1 << 14, "float32"))
""",
    "an SVD state of 8 GiB": """
from actscope.codecs import decode
state = struct.pack("<4sIIB3x", b"SVD1", 1 << 15, (1 << 15) - 1, 4) + bytes(99)
attempt(lambda: decode(7, bytes(100), 4, 1 << 15, "float32", state))
""",
    "a sparse autoencoder file of 60 GiB": """
import os
from actscope.probes.sae import load_encoder
head = json.dumps({"W_enc": {"dtype": "F32", "shape": [1 << 14, (60 << 30) >> 16], "data_offsets": [0, 60 << 30]}}).encode()
(folder / "sae.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
os.truncate(folder / "sae.safetensors", 8 + len(head) + (60 << 30))
attempt(lambda: load_encoder(folder / "sae.safetensors", "layers.1.resid_post"))
""",
    "an autoencoder's archive that says it unpacks to 4 GiB": """
import zipfile
from actscope.probes.sae import load_encoder
head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (1 << 14, (60 << 30) >> 16)
head += b" " * (117 - len(head)) + b"\\n"
with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("W_enc.npy", b"\\x93NUMPY\\x01\\x00" + struct.pack("<H", len(head)) + head)
raw = bytearray((folder / "params.npz").read_bytes())
at = raw.rindex(b"PK\\x01\\x02")
struct.pack_into("<I", raw, at + 24, 0xFFFFFFF0)
(folder / "params.npz").write_bytes(bytes(raw))
attempt(lambda: load_encoder(folder / "params.npz", "layers.1.resid_post"))
""",
    "a probe whose header claims 2 ** 62 bytes": """
from actscope.probes import load_probe
(folder / "p.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
attempt(lambda: load_probe(folder / "p.safetensors"))
""",
    "a probe whose tensors overlap": """
from actscope.probes.sae import load_encoder
same = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
head = json.dumps({"W_enc": same, "b_enc": same}).encode()
(folder / "sae.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(64))
attempt(lambda: load_encoder(folder / "sae.safetensors"))
""",
    "a message that announces 256 MiB and never comes": """
import socket
from actscope.feed.messages import FROM_GENERATOR
ours, theirs = socket.socketpair()
ours.sendall(struct.pack("<I", 1 << 28) + b"x")
ours.close()
attempt(lambda: FROM_GENERATOR.receive(theirs))
""",
    "a message that announces 4 GiB": """
import socket
from actscope.feed.messages import FROM_GENERATOR
ours, theirs = socket.socketpair()
ours.sendall(struct.pack("<I", (1 << 32) - 1) + b"x")
attempt(lambda: FROM_GENERATOR.receive(theirs))
""",
    "a packet stream whose header has rows 2 ** 40 wide": """
from actscope.recording.importing import import_packets
from actscope.recording.format.packets import HEADER, PacketWriter, SiteForm, StreamHeader
with (folder / "s.packets").open("wb") as file:
    PacketWriter(file).record(HEADER, StreamHeader(sites={"layers.0.resid_post": SiteForm("float32", 1 << 40)}))
attempt(lambda: import_packets(folder / "s.packets", folder / "i.acts"))
""",
}
#: Attacks of which nothing is read, so that there is no error.
SILENT = {"a message that announces 256 MiB and never comes"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What was said, and how much memory was added, by attack."""
    env = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    parts = [_EACH.replace("NUMBER", str(n)).replace("CODE", code) for n, code in enumerate(ATTACKS.values())]
    command = [sys.executable, "-c", "".join([_SETUP, *parts]), str(tmp_path_factory.mktemp("attacks"))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    return dict(zip(ATTACKS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_number_that_lies_is_refused_before_memory_is_taken_for_it(
    attack: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    found = outcomes[attack]
    assert found["added_mb"] < MOST_ADDED_MB, found
    assert (found["said"] == "nothing") == (attack in SILENT), found
