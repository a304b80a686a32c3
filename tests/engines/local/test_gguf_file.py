"""The head of a GGUF file is read right, and a file that lies is refused before anything is allocated for it."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import pytest
from support.local.writing import MERGES, TOKENS, tensors_of, tiny_llama, write_gguf

from actscope.engines.local.gguf_file import is_gguf, read_gguf
from actscope.errors import EngineError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama())


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def head(n_tensors: int, *keys: bytes, version: int = 3, n_keys: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, len(keys) if n_keys is None else n_keys) + b"".join(keys)


LLAMA = key("general.architecture", 8, struct.pack("<Q", 5) + b"llama")
BLOCKS = key("llama.block_count", 4, struct.pack("<I", 1))


def tensor(name: str, *sizes: int, kind: int = 0, offset: int = 0) -> bytes:
    raw = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(sizes))
    return raw + struct.pack(f"<{len(sizes)}Q", *sizes) + struct.pack("<IQ", kind, offset)


def test_metadata_and_tensors_are_those_that_were_written(whole: Path) -> None:
    file = read_gguf(whole)
    assert file.architecture == "llama"
    assert file.number("llama.block_count") == 3 and file.metadata["llama.rope.freq_base"] == 50_000.0
    assert file.metadata["tokenizer.ggml.add_bos_token"] is False
    assert file.strings("tokenizer.ggml.tokens") == TOKENS and file.strings("tokenizer.ggml.merges") == MERGES
    assert {t.name: t.sizes[::-1] for t in file.tensors} == {n: v.shape for n, v in tensors_of(tiny_llama()).items()}


def test_a_file_is_known_by_its_suffix_or_by_its_first_bytes(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "sha256-1234").symlink_to(whole)
    (tmp_path / "other").write_bytes(b"GGML....")
    (tmp_path / "folder.gguf").mkdir()
    assert is_gguf("absent.gguf") and is_gguf(str(tmp_path / "sha256-1234"))
    assert not any(
        is_gguf(str(name)) for name in (tmp_path / "other", tmp_path / "folder.gguf", tmp_path, "Qwen/Qwen3-8B")
    )


LIES = {
    "no such bytes": b"GGML" + bytes(60),
    "a version of another time": head(0, version=1),
    "more keys than bytes": head(0, LLAMA, n_keys=9_999),
    "too many keys": head(0, n_keys=1 << 60),
    "too many tensors": head(1 << 60, LLAMA),
    "a string of 2^63 bytes": head(0, struct.pack("<Q", 1 << 63)),
    "an array of 2^62 numbers": head(0, key("a", 9, struct.pack("<IQ", 10, 1 << 62))),
    "arrays of 8 million strings": head(0, key("a", 9, struct.pack("<IQ", 8, 7_000_000)), n_keys=1),
    "arrays in arrays in arrays": head(0, key("a", 9, struct.pack("<IQ", 9, 1) * 9)),
    "a value of no type": head(0, key("a", 77, bytes(8))),
    "text that is none": head(0, key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")),
    "the same key twice": head(0, LLAMA, LLAMA),
    "no architecture": head(0, BLOCKS),
    "an architecture that is a number": head(0, key("general.architecture", 4, struct.pack("<I", 7)), BLOCKS),
    "a million blocks": head(1, LLAMA, key("llama.block_count", 4, struct.pack("<I", 10**6)), tensor("blk.0.a", 4)),
    "more blocks than it has": head(1, LLAMA, key("llama.block_count", 4, struct.pack("<I", 9)), tensor("blk.0.a", 4)),
    "a number of blocks that is text": head(1, LLAMA, key("llama.block_count", 8, struct.pack("<Q", 1) + b"1")),
    "a million experts": head(
        1, LLAMA, BLOCKS, key("llama.expert_count", 4, struct.pack("<I", 10**6)), tensor("blk.0.a", 4)
    ),
    "a tensor of 2^70 weights": head(1, LLAMA, BLOCKS, tensor("blk.0.a", 1 << 35, 1 << 35)),
    "a tensor behind the end": head(1, LLAMA, BLOCKS, tensor("blk.0.a", 4, offset=1 << 50)),
    "a tensor of 200 dimensions": head(1, LLAMA, BLOCKS, tensor("blk.0.a", *(200 * [1]))),
    "a tensor without weights": head(1, LLAMA, BLOCKS, tensor("blk.0.a", 0)),
    "a tensor of no type": head(1, LLAMA, BLOCKS, tensor("blk.0.a", 4, kind=999)),
    "half a block": head(1, LLAMA, BLOCKS, tensor("blk.0.a", 31, kind=8)),
    "the same tensor twice": head(2, LLAMA, BLOCKS, tensor("blk.0.a", 1), tensor("blk.0.a", 1)),
    "tensors in one place": head(2, LLAMA, BLOCKS, tensor("blk.0.a", 4), tensor("blk.0.b", 4)),
    "tensors that overlap": head(2, LLAMA, BLOCKS, tensor("blk.0.b", 4, offset=12), tensor("blk.0.a", 4)),
    "an alignment of 4 GB": head(
        1, LLAMA, BLOCKS, key("general.alignment", 4, struct.pack("<I", 2**32 - 1)), tensor("blk.0.a", 1)
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_with_its_place(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(LIES[lie] + bytes(64))
    tracemalloc.start()
    with pytest.raises(EngineError, match=r"lie\.gguf.*expected .*, found") as caught:
        read_gguf(path)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert len(str(caught.value)) < 600


def test_a_file_cut_off_anywhere_is_refused(whole: Path, tmp_path: Path) -> None:
    """The last cut is inside the last tensor."""
    data = whole.read_bytes()
    for length in (0, 3, 23, 24, 100, 5000, len(data) // 2, len(data) - 40):
        path = tmp_path / "short.gguf"
        path.write_bytes(data[:length])
        with pytest.raises(EngineError, match=r"short\.gguf"):
            read_gguf(path)


def test_bytes_changed_at_random_give_a_file_or_a_clear_error(whole: Path, tmp_path: Path) -> None:
    data, draw = whole.read_bytes(), random.Random(3)
    path = tmp_path / "odd.gguf"
    for _ in range(60):
        odd = bytearray(data)
        for _ in range(draw.choice((1, 8, 64))):
            odd[draw.randrange(6000)] = draw.randrange(256)
        path.write_bytes(odd)
        try:
            read_gguf(path)
        except EngineError as error:
            assert "odd.gguf" in str(error)


def test_one_part_of_several_is_refused_with_what_to_do(whole: Path, tmp_path: Path) -> None:
    """By its name, and by its metadata when it was renamed."""
    named = tmp_path / "model-00001-of-00003.gguf"
    named.write_bytes(whole.read_bytes())
    renamed = write_gguf(tmp_path / "b.gguf", tiny_llama(), more=lambda w: w.add_uint16("split.count", 3))
    for path in (named, renamed):
        with pytest.raises(EngineError, match="llama-gguf-split --merge"):
            read_gguf(path)
