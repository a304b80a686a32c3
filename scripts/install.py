"""Install one extra of this checkout into the environment of the Python that runs this, and show how far it is.

    .venv/bin/python scripts/install.py hf

Says first what it will take, by the table of docs/install.md. pip shows nothing while it unpacks packages, which is most of the
time with a warm cache; so the packages that have arrived are counted. Byte code is left for the first import, which needs only a
part of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "install.md"
_LOOK_S = 0.5
#: Time between two lines where the output is no terminal.
_LINE_S = 5.0
#: Lines of pip's output that are shown when it fails.
_TAIL = 30


def size_of(extra: str, table: str) -> tuple[int, int]:
    """Return (packages, MB) of an extra, by its row in the table of extras."""
    row = re.search(rf"^\| `{re.escape(extra)}` \|.*\| ([\d,]+) \| ([\d,]+) \|$", table, re.MULTILINE)
    if row is None:
        raise SystemExit(f"no row for `{extra}` in {TABLE}")
    packages, size = (int(number.replace(",", "")) for number in row.groups())
    return packages, size


@dataclass
class Progress:
    """How far pip is, from its output and from what lies in the environment."""

    site: Path
    """Where packages are installed."""
    total: int
    """Number of packages that are expected, until pip has said it."""
    collected: int = 0
    here_before: int = 0
    installing: bool = False
    tail: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.here_before = self.here()

    def here(self) -> int:
        """Return the number of packages in the environment."""
        return len(list(self.site.glob("*.dist-info")))

    def take(self, line: str) -> None:
        """Take in a line of pip's output."""
        self.tail = [*self.tail[1 - _TAIL :], line.rstrip()]
        if line.startswith(("Collecting ", "Requirement already satisfied:")):
            self.collected += 1
        elif line.startswith("Installing collected packages:"):
            self.installing, self.total = True, line.count(",") + 1

    def __str__(self) -> str:
        if not self.installing:
            return f"  {self.collected} of about {self.total} packages found"
        return f"  {min(self.total, self.here() - self.here_before)} of {self.total} packages installed"


def install(extra: str, out: TextIO = sys.stderr) -> int:
    """Run pip, show its progress on `out`, and return its exit code. Its last lines are shown if it fails."""
    packages, size = size_of(extra, TABLE.read_text(encoding="utf-8"))
    print(
        f"setting up {sys.prefix}: about {packages} packages, {size:,} MB with torch for CPU (several GB more with torch for "
        "CUDA);\n  about a minute with a warm package cache, else as long as the download takes",
        file=out, flush=True,
    )  # fmt: skip
    command = [
        sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off",
        "--no-compile", "--constraint", "constraints.txt", "--editable", f".[{extra}]",
    ]  # fmt: skip
    began = time.monotonic()
    pip = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert pip.stdout is not None
    progress, done = Progress(Path(sysconfig.get_path("purelib")), packages), threading.Event()
    shower = threading.Thread(target=_show, args=(progress, done, out), daemon=True)
    shower.start()
    for line in pip.stdout:
        progress.take(line)
    code = pip.wait()
    done.set()
    shower.join()
    if code:
        print("\n".join(progress.tail), file=out)
    else:
        print(f"  {progress.total} packages in {time.monotonic() - began:.0f} s", file=out, flush=True)
    return code


def _show(progress: Progress, done: threading.Event, out: TextIO) -> None:
    every = _LOOK_S if out.isatty() else _LINE_S
    while not done.wait(every):
        print(
            f"\r{progress}\033[K" if out.isatty() else str(progress),
            end="" if out.isatty() else "\n",
            file=out,
            flush=True,
        )
    if out.isatty():
        print("\r\033[K", end="", file=out, flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("expected one argument, the name of an extra: python scripts/install.py hf")
    raise SystemExit(install(sys.argv[1]))
