"""docs/exports.md: every block opens the export with the library that it names, and has the recorded rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.docs.blocks import BlockPlayer, blocks_of
from support.recordings.real_model import record, run_model

from actscope.recording.export import FORMATS
from actscope.recording.reading.recording import Recording

PAGE = Path(__file__).parents[2] / "docs/exports.md"
SITE = "layers.2.resid_post"


@pytest.mark.filterwarnings("default")  # of the libraries that are tried
def test_every_format_opens_as_the_page_says_and_gives_the_recorded_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python blocks `rows` are those of one site; sites are never mixed."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    record(run_model(dtype=torch.float32), tmp_path / "run.acts")
    recording = Recording.open(tmp_path / "run.acts")
    with BlockPlayer(tmp_path) as player:
        for block in blocks_of(PAGE):
            player.namespace.pop("rows", None)
            player.play(block)
            if block.language == "python":
                rows = np.asarray(player.namespace["rows"])
                assert rows.dtype == np.float32, block.name
                np.testing.assert_array_equal(rows, recording[SITE][:], block.name)
    assert player.namespace["frame"]["site"].nunique() == len(recording.sites)
    assert len(player.namespace["frame"]) == sum(len(recording[site].labels) for site in recording.sites)
    assert Recording.open(tmp_path / "again.acts").sites == recording.sites


def test_the_page_has_a_section_for_each_format() -> None:
    assert [name for name in FORMATS if f"\n## {name}\n" not in PAGE.read_text()] == []
