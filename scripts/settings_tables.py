"""Write the tables of settings in docs/*.md, between `<!-- settings: NAME -->` and `<!-- end -->`, from the settings classes.

python scripts/settings_tables.py            write them
python scripts/settings_tables.py --check    exit 1 and name the pages where they differ from the code
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from actscope.cli.common import options
from actscope.cli.common.settings_fields import SettingsField
from actscope.cli.common.settings_options import Flags
from actscope.engines.vllm.settings import VllmSettings
from actscope.sizes import bytes_text

DOCS = Path(__file__).parents[1] / "docs"
FLAGS = {flags.settings.__name__: flags for flags in vars(options).values() if isinstance(flags, Flags)}
FLAGS["VllmSettings"] = Flags(VllmSettings, variables="ACTSCOPE_").only()  # vLLM has its own command line
MARKED = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(flags: Flags) -> str:
    """Return the table of a settings class. A column in which no field has an entry is left out."""
    rows = [_row(flags, one) for one in flags.fields or flags.all_fields]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(flags: Flags, one: SettingsField) -> dict[str, str]:
    special, flag = flags.special.get(one.name), f"`{flags.flag(one.name)}`"
    flag = flag.replace("--", "--no-") if one.default is True else flag
    variable = special.env if special and special.env else flags.variables and flags.variables + one.name.upper()
    return {
        "setting": f"`{one.name}`",
        "flag": flag if one in flags.fields else "",
        "variable": f"`{variable}`" if variable else "",
        "default": _default(one, special.default if special else None),
        "meaning": one.doc.replace("|", "\\|"),
    }


def _default(one: SettingsField, described: object) -> str:
    if one.default is inspect.Parameter.empty:
        return str(described or "required")
    if one.default in ("", (), None):
        return ""
    if isinstance(one.default, tuple):
        return ", ".join(f"`{item}`" for item in one.default)
    if one.name.endswith("_bytes"):
        return f"`{bytes_text(one.default)}`"
    return f"`{one.default:g}`" if isinstance(one.default, float) else f"`{one.default}`"


def renewed(text: str) -> str:
    """Return a page with its tables as the code has them."""
    return MARKED.sub(lambda match: match[1] + table(FLAGS[match[2]]) + match[3], text)


def main(check: bool) -> int:
    """Write the pages, or name those that differ. Returns the exit code."""
    stale = {page: new for page in sorted(DOCS.glob("*.md")) if (new := renewed(old := page.read_text())) != old}
    for page, new in stale.items():
        print(f"docs/{page.name}: {'differs from the settings classes: run make tables' if check else 'written'}")
        if not check:
            page.write_text(new)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
