"""A recording on the page, in a real browser: see web/e2e/replay.e2e.mjs for what is checked."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.recordings.replayed import record_builtin
from support.servers import COMMAND
from support.waiting import interrupt

from actscope.engines.replay.plan import ReplayPlan
from actscope.recording.reading.recording import Recording

ROOT = Path(__file__).parents[2]
SITES = [f"layers.{layer}.resid_post" for layer in range(1, 5)]
#: How long it plays: the browser must be up before it ends.
SHOWN_S = 15.0


def test_a_recording_plays_on_the_page_coloured_with_probes_and_stays_there(tmp_path: Path) -> None:
    """Live while it plays, whole for a page that comes late, with the gateway's numbers; in slow motion."""
    recording = record_builtin(tmp_path / "run.acts", max_tokens=150, sites=SITES)
    speed = ReplayPlan(Recording.open(recording)).duration_ns / 1e9 / SHOWN_S
    command = [*COMMAND, "replay", str(recording), "--port", "0", "--no-browser", "--speed", str(speed)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            link = next((line.split()[-1] for line in process.stderr if "/?token=" in line), None)
            assert link is not None
            script = ["node", str(ROOT / "web/e2e/replay.e2e.mjs"), link, str(tmp_path)]
            done = subprocess.run(script, capture_output=True, text=True, timeout=200, cwd=ROOT / "web")
        finally:
            interrupt(process)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.png"))) == 3
