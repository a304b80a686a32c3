"""Print the packages and the size of every extra, for the table in docs/install.md.

    .venv/bin/python scripts/extras_sizes.py

Counts what `pip install 'actscope[extra]'` alone installs beside actscope, from the metadata of this environment, and adds up the
files that each distribution has on disk here, byte code included. MB are 1e6 bytes.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.install.closure import closure, project  # noqa: E402  # found below tests


def size_of(found: Distribution) -> int:
    """Return the bytes of a distribution's files that are on disk."""
    paths = {Path(str(found.locate_file(file))) for file in found.files or ()}
    return sum(path.stat().st_size for path in paths if path.is_file())


def measured(*extras: str) -> tuple[int, int]:
    """Return (distributions, bytes) of an installation, actscope not counted."""
    names = closure(*extras)
    return len(names), sum(size_of(distribution(name)) for name in names)


if __name__ == "__main__":
    for extra in ("", *project()["optional-dependencies"]):
        count, size = measured(*filter(None, [extra]))
        print(f"{extra or '-':<10} {count:>4} {size / 1e6:>8.0f}")
