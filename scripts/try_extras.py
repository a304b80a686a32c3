"""Install a wheel with each extra alone into an empty environment, and try every command there.

    .venv/bin/python scripts/try_extras.py --wheel dist/actscope-0.1.0-py3-none-any.whl [--only hf,feed] [--json FILE]

A command works, or names its install line. The environments have the versions of `constraints.txt`. All together take many
minutes and several GB of downloads, so this is run by hand, before a release; `tests/install/test_commands.py` tries the same
commands with packages hidden.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.install.closure import packages_of  # noqa: E402  # found below tests
from support.install.commands import ATTEMPTS, Attempt, install_lines, prepare  # noqa: E402

from actscope.extras import EXTRAS  # noqa: E402

LONGEST_S = 300.0
NOT_COUNTED = ("pip", "setuptools", "actscope")


def installed(directory: Path, wheel: Path, extra: str) -> Path:
    """Make an environment with the wheel and an extra, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    python = directory / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    what = f"{wheel}[{extra}]" if extra else str(wheel)
    subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), what], check=True)
    return python


def size_of(environment: Path) -> tuple[int, int]:
    """Return (distributions, bytes) of an environment, without actscope and what every environment has."""
    site = next(environment.glob("lib/python*/site-packages"))
    names = [path.name.partition("-")[0].lower() for path in site.glob("*.dist-info")]
    own = [path for path in site.iterdir() if path.name.lower().split("-")[0] not in NOT_COUNTED]
    files = [file for path in own for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(name not in NOT_COUNTED for name in names), sum(file.stat().st_size for file in files)


def attempt(python: Path, one: Attempt, directory: Path) -> str:
    """Run a command in a directory, and return its output. One that serves is interrupted when it does."""
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ} | {
        "HOME": str(directory), "ACTSCOPE_RUNTIME_DIR": str(directory / "run"), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [str(python.parent / "actscope"), *one.words], cwd=directory, env=environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        end, until = time.monotonic() + LONGEST_S, one.works.encode() if one.until else b""
        while process.poll() is None and time.monotonic() < end:
            if until and until in os.pread(output.fileno(), 1 << 20, 0):
                process.send_signal(signal.SIGINT)
                until = b""
            time.sleep(0.1)
        process.kill()
        process.wait()
        output.seek(0)
        return output.read()


def tried(python: Path, extra: str, directory: Path) -> dict[str, str]:
    """Try all commands, and return what became of each: "works", its install line, or what is wrong."""
    there, found = packages_of(*filter(None, [extra])), {}
    prepare(directory)
    (directory / "run").mkdir(mode=0o700)
    for one in ATTEMPTS:
        enough = packages_of(*filter(None, one.extra.split(","))) <= there
        if enough and not one.works:
            continue  # it would work, and take long
        output = attempt(python, one, directory)
        lines = install_lines(output)
        if "Traceback" in output:
            found[one.line] = f"WRONG: {output[-500:]}"
        elif one.works and one.works in output:
            found[one.line] = "works"
        elif lines and not enough:
            found[one.line] = f"pip install 'actscope[{lines[0]}]'"
        else:
            found[one.line] = f"WRONG: {output[-500:]}"
    return found


def main() -> int:
    """Try all extras, or some of them, and return the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--only", default=",".join(("none", *EXTRAS)), help="Extras, separated by commas.")
    parser.add_argument("--json", type=Path, help="Write what was found to this file too.")
    args = parser.parse_args()
    report: dict[str, Any] = {}
    for name in args.only.split(","):
        extra = "" if name == "none" else name
        directory = Path(tempfile.mkdtemp(prefix="actscope-extra-"))
        try:
            began = time.monotonic()
            python = installed(directory / "venv", args.wheel.resolve(), extra)
            seconds, (count, size) = time.monotonic() - began, size_of(directory / "venv")
            (directory / "work").mkdir()
            found = tried(python, extra, directory / "work")
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        report[name] = {
            "packages": count,
            "mb": round(size / 1e6),
            "install_seconds": round(seconds),
            "commands": found,
        }
        wrong = {line: said for line, said in found.items() if said.startswith("WRONG")}
        print(
            f"{name:<10} {count:>4} packages {size / 1e6:>7.0f} MB, {len(found)} commands, {len(wrong)} wrong",
            flush=True,
        )
        for line, said in wrong.items():
            print(f"    {line}: {said}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(said.startswith("WRONG") for one in report.values() for said in one["commands"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
