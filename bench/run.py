"""Runs the benches and keeps their results: `python bench/run.py [NAME ...]` writes bench/runs/<date>/<name>.json.

`vllm`, `serving` and `models-vllm` run in the environment that has vLLM, .venv-vllm; where that has not been made, the first two
are left out unless they are asked for. The matrices, `models` and `models-vllm`, measure no speed and run only if they are asked
for (`make models`).
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path

from actscope.cli.bench import BENCHES

RUNS = Path(__file__).parent / "runs"
#: Arguments of what is more than a bench's name.
ARGUMENTS = {"models-vllm": ["models", "--engine", "vllm"]}
#: What runs in the environment that has vLLM.
ON_VLLM = ("vllm", "serving", "models-vllm")
VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"


def main(names: list[str]) -> int:
    """Run each bench in its own process; returns 1 when one of them missed a bar."""
    folder = RUNS / datetime.date.today().isoformat()
    folder.mkdir(parents=True, exist_ok=True)
    missed = 0
    for name in names or [name for name in BENCHES if name != "models" and (name not in ON_VLLM or VLLM.exists())]:
        arguments = ARGUMENTS.get(name, [name])
        done = subprocess.run(
            [_python(name), "-m", "actscope", "bench", *arguments, "--json"], stdout=subprocess.PIPE, text=True
        )
        if not done.stdout:
            return done.returncode  # it has said why
        report = json.loads(done.stdout)
        (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        for result in report["results"]:
            print(
                f"{name:<10} {result['name']:<26} {result['value']:>10} {result['unit']:<6} {'ok' if result['ok'] else 'MISSED'}"
            )
        missed |= done.returncode
    return missed


def _python(name: str) -> str:
    return str(VLLM) if name in ON_VLLM and VLLM.exists() else sys.executable


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
