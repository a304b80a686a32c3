"""Readers of a model's directory and of datasets: what transformers and `datasets` open for us."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
from support.attacks.fuzzing import Target
from support.hf.tiny import byte_tokenizer, tiny

from actscope.engines.hf.loading import load
from actscope.extraction.texts import open_texts

TEXTS = ["one", "", "three", "four of them"]


def _model_targets(folder: Path) -> Iterator[Target]:
    place = folder / "model"
    tiny("llama").model.save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    rounds = {"config.json": 25, "tokenizer.json": 15, "tokenizer_config.json": 10, "model.safetensors": 10}
    for name, number in rounds.items():
        yield Target(f"a model's {name}", [(place / name).read_bytes()], _loading(place, name), number)


def _loading(place: Path, name: str) -> Callable[[bytes], object]:
    whole = (place / name).read_bytes()

    def read(data: bytes) -> None:
        (place / name).write_bytes(data)
        try:
            load(str(place), device="cpu")
        finally:
            (place / name).write_bytes(whole)

    return read


def _reading(spec: Path, path: Path, cache: Path) -> Callable[[bytes], object]:
    """Return a reader of the dataset `spec` with the bytes in its file `path`."""

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            texts = open_texts(str(spec))
            assert texts.fingerprint
            texts.read(range(min(3, len(texts))))
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    return read


def _dataset_targets(folder: Path) -> Iterator[Target]:
    cache = folder / "cache"
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    lines = "".join(json.dumps({"n": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink)
    files = {
        "a.jsonl": lines, "b.jsonl.gz": gzip.compress(lines), "c.txt": "\n".join(TEXTS).encode(),
        "d.json": json.dumps([{"text": text} for text in TEXTS]).encode(), "e.parquet": sink.getvalue().to_pybytes(),
    }  # fmt: skip
    for name, data in files.items():
        yield Target(f"a dataset, {name}", [data], _reading(folder / name, folder / name, cache), 40)
    saved = datasets.Dataset.from_dict({"text": TEXTS})
    saved.save_to_disk(str(folder / "saved"))
    datasets.DatasetDict({"train": saved}).save_to_disk(str(folder / "splits"))
    for path in (folder / "saved" / "state.json", folder / "splits" / "dataset_dict.json"):
        yield Target(f"a saved dataset's {path.name}", [path.read_bytes()], _reading(path.parent, path, cache), 60)


def targets(folder: Path) -> Iterator[Target]:
    """Return the readers of this group."""
    yield from _dataset_targets(folder)
    yield from _model_targets(folder)
