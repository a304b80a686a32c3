"""The page in a real browser, against the real engine: see web/e2e/scope.e2e.mjs for what is checked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.servers import serving

ROOT = Path(__file__).parents[2]


def test_a_message_is_answered_with_tokens_coloured_as_they_stream_and_the_numbers_of_the_api(tmp_path: Path) -> None:
    """Coloured while streaming; hover shows the API's number; chart and text share the token; stop and regenerate work."""
    with serving() as running:
        command = ["node", str(ROOT / "web/e2e/scope.e2e.mjs"), running.link, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT / "web")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.png"))) >= 2


def test_a_probe_without_a_range_is_coloured_on_a_scale_that_is_learnt(tmp_path: Path) -> None:
    """See web/e2e/ranges.e2e.mjs: no scale at first, then colours of both signs, the same for two viewers."""
    with serving() as running:
        command = ["node", str(ROOT / "web/e2e/ranges.e2e.mjs"), running.link, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT / "web")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", ["cards", "trust", "comfort"])
def test_what_the_page_shows_is_true_and_what_its_reader_made_is_not_lost(script: str, tmp_path: Path) -> None:
    """See web/e2e/cards.e2e.mjs (the pinned card), trust.e2e.mjs (probes, characters, lines, chats) and comfort.e2e.mjs."""
    with serving() as running:
        command = ["node", str(ROOT / f"web/e2e/{script}.e2e.mjs"), running.link, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=480, cwd=ROOT / "web")
    assert done.returncode == 0, done.stdout + done.stderr
