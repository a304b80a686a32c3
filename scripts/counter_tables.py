"""Write the tables of counters in docs/counters.md, between `<!-- counters: NAME -->` and `<!-- end -->`, from the code.

python scripts/counter_tables.py            write them
python scripts/counter_tables.py --check    exit 1 if they differ from the code
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import actscope
from actscope.counters import CLASSES, Kind, Meaning, meanings
from actscope.engines.vllm.sidecar.drain import DrainStats

ROOT = Path(actscope.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "counters.md"
MARKED = re.compile(r"(<!-- counters: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WORDS: dict[Kind, str] = {"work": "work", "now": "current value", "loss": "loss", "doubt": "doubt", "fault": "fault"}
#: Process that shows the counters of a prefix, where it is not told by the room.
PLACES = {"sidecar": "model", "drain": "sidecar", "flight": "recording", "recording": "recording", "ring": "ring"}


def classes() -> dict[type, str]:
    """Return every class of counts of the package, with the prefix of its counters."""
    for path in sorted(ROOT.rglob("*.py")):
        if re.search(r"^@counting\(", path.read_text(), re.MULTILINE):
            import_module(".".join(("actscope", *path.relative_to(ROOT).with_suffix("").parts)))
    assert DrainStats in CLASSES
    return {kind: CLASSES[kind] for kind in sorted(CLASSES, key=lambda kind: (CLASSES[kind], kind.__qualname__))}


def place_of(kind: type, prefix: str) -> str:
    """Return the table in which a class of counts is described."""
    room = kind.__module__.split(".")
    if prefix in PLACES:
        return PLACES[prefix]
    return "serve" if "hf" in room else "model" if "vllm" in room else "gateway"


def table(place: str) -> str:
    """Return the table of one place."""
    rows = [
        _row(f"{prefix}_{name}", meaning, kind)
        for kind, prefix in classes().items()
        if place_of(kind, prefix) == place
        for name, meaning in meanings(kind).items()
        if meaning is not None
    ]
    head = "| counter | kind | what it counts | what to do | counted in |\n|---|---|---|---|---|\n"
    return head + "".join(rows)


def _row(name: str, meaning: Meaning, kind: type) -> str:
    where = f"`{kind.__module__.removeprefix('actscope.').replace('.', '/')}.py`"
    return f"| `{name}` | {WORDS[meaning.kind]} | {meaning.help} | {meaning.todo} | {where} |\n"


def renewed(text: str) -> str:
    """Return the page with its tables as the code has them."""
    return MARKED.sub(lambda match: match[1] + table(match[2]) + match[3], text)


def main(check: bool) -> int:
    """Write the page, or say that it differs. Returns the exit code."""
    old = PAGE.read_text()
    new = renewed(old)
    if new != old:
        print(f"docs/{PAGE.name}: {'differs from the classes of counts: run make tables' if check else 'written'}")
        if not check:
            PAGE.write_text(new)
    return int(check and new != old)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
