"""A reader is opened by the names of engine, model and sites."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from actscope.engines import builtin
from actscope.errors import MissingExtra, SettingsError
from actscope.extraction.cutting import Cutter, tokenizer_of
from actscope.extraction.opening import open_reader
from actscope.extraction.stream import TextStream
from actscope.extraction.texts import open_texts


def test_built_in_texts_go_through_the_built_in_model() -> None:
    """The whole way on a fresh machine: texts, pieces, rows with their labels; no download."""
    reader = open_reader("hf", builtin.NAME, "layers.2.resid_post", dtype="bfloat16", context=128)
    stream = TextStream(open_texts("builtin"), Cutter(tokenizer_of(builtin.NAME), context=128), chunk_texts=8)
    rows = reader.read(stream.pieces(0))
    assert len(rows.labels) == stream.rows_in(0) > 300
    assert rows.values["layers.2.resid_post"].shape == (len(rows.labels), reader.facts.d_model)
    assert set(rows.labels["text"].tolist()) == set(stream.numbers(0).tolist())
    reader.close()


@pytest.mark.parametrize(
    ("engine", "options", "says"),
    [
        ("jax", {}, "expected one of hf, vllm"),
        ("hf", {"context": 4096}, "reads at most 2048"),
        ("hf", {"dtype": "int8"}, "dtype 'int8'"),
        ("vllm", {"device": "cuda:1"}, "device 'cuda:1'"),
    ],
)
def test_what_cannot_be_opened_is_refused(engine: Any, options: dict[str, Any], says: str) -> None:
    """The message names the setting and what it may be."""
    with pytest.raises(SettingsError, match=says):
        open_reader(engine, builtin.NAME, "1", **options)


def test_without_vllm_its_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an environment that has none."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtra, match="vllm"):
        open_reader("vllm", builtin.NAME, "1")
