"""Write the lists of fields in docs/openai-api.md from the code.

python scripts/api_tables.py            write them
python scripts/api_tables.py --check    exit 1 if they differ from the code
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from actscope.engines.hf.api.foreign_fields import REFUSED, WITHOUT_EFFECT

PAGE = Path(__file__).parents[1] / "docs/openai-api.md"


def refused() -> str:
    """Return the rows of the table of refused fields."""
    return _rows({name: reason for name, (reason, _) in REFUSED.items()})


def without_effect() -> str:
    """Return the rows of the table of fields without effect."""
    return _rows(WITHOUT_EFFECT)


def _rows(reason_of: Mapping[str, str]) -> str:
    """Return a row for each reason, with its fields."""
    reasons: dict[str, list[str]] = {}
    for name, reason in reason_of.items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    return "\n".join(f"| {', '.join(sorted(names))} | {reason} |" for reason, names in reasons.items())


def written(page: str) -> str:
    """Return the page with both lists as the code has them."""
    for name, text in (("refused", refused()), ("without", without_effect())):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        page = re.sub(pattern, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page, flags=re.DOTALL)
    return page


def main(check: bool) -> int:
    """Write the page, or say that it differs. Returns the exit code."""
    old = PAGE.read_text(encoding="utf-8")
    new = written(old)
    if new != old:
        print(f"docs/{PAGE.name}: {'differs from the code: run make tables' if check else 'written'}")
        if not check:
            PAGE.write_text(new, encoding="utf-8")
    return int(check and new != old)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
