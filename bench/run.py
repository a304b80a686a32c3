"""Runs the benches and keeps their results: `python bench/run.py [NAME ...]` writes bench/runs/<date>/<name>.json."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

from actscope.cli.bench import BENCHES

RUNS = Path(__file__).parent / "runs"


def main(names: list[str]) -> int:
    """Run each bench in its own process; returns 1 when one of them missed a bar."""
    folder = RUNS / datetime.date.today().isoformat()
    folder.mkdir(parents=True, exist_ok=True)
    missed = 0
    for name in names or list(BENCHES):
        done = subprocess.run(
            [sys.executable, "-m", "actscope", "bench", name, "--json"], stdout=subprocess.PIPE, text=True
        )
        report = json.loads(done.stdout)
        (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        for result in report["results"]:
            print(
                f"{name:<10} {result['name']:<26} {result['value']:>10} {result['unit']:<6} {'ok' if result['ok'] else 'MISSED'}"
            )
        missed |= done.returncode
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
