"""Write docs/reference.md: every option of every command, every public name of Python, and every variable, from the code.

python scripts/reference_tables.py            write it
python scripts/reference_tables.py --check    exit 1 if it differs from the code
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from actscope import errors
from actscope.cli.app import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference.md"
#: Packages whose `__all__` is for users.
PACKAGES = (
    "actscope", "actscope.client", "actscope.feed", "actscope.harvest", "actscope.probes", "actscope.probes.importing",
    "actscope.probes.sae", "actscope.recording.export", "actscope.recording.importing", "actscope.analysis", "actscope.gateway",
    "actscope.store", "actscope.codecs",
)  # fmt: skip
HEAD = """# Reference

Every option of every command, every public name of Python, and every environment variable. `make tables` writes this page from
the code. The [guide](guide.md) explains what they are for; each command prints the same with `--help`.

"""
VARIABLES = """## Variables

Names that the code reads, and the rooms that read them. [The guide](guide.md#settings) and [vLLM](vllm.md#settings) have their
meaning. Settings of the feed (`ACTSCOPE_FEED_...`) and of the plugin are variables too, by the tables there.

"""
_VARIABLE = re.compile(r'"((?:ACTSCOPE|VLLM_CAPTURE)_[A-Z_]*[A-Z])"')


def page() -> str:
    """Return the page as the code has it."""
    parts = [
        HEAD,
        "## Commands\n\n",
        *map(_command, commands()),
        "## Python\n\n",
        *map(_package, PACKAGES),
        _errors(),
        _variables(),
    ]
    return "".join(parts).rstrip() + "\n"


def commands() -> list[tuple[str, Any]]:
    """Return all commands, with those of groups, by how they are typed."""
    found: list[tuple[str, Any]] = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        group = getattr(command, "commands", None)
        found += [(f"{name} {one}", inner) for one, inner in group.items()] if group else [(name, command)]
    return found


def _command(named: tuple[str, Any]) -> str:
    name, command = named
    rows = [_option(one) for one in command.params if one.name != "help"]
    return f"### actscope {name}\n\n{_sentence(command.help)}\n\n{_table(('option', 'default', 'meaning'), rows)}\n"


def _option(one: Any) -> tuple[str, str, str]:
    if one.param_type_name == "argument":
        return f"`{one.metavar or one.name.upper()}`", "" if one.required else _default(one), one.help or ""
    names = " / ".join(f"`{flag}`" for flag in (*one.opts, *one.secondary_opts))
    return names, _default(one), one.help or ""


def _default(one: Any) -> str:
    shown = one.show_default if isinstance(one.show_default, str) else one.default
    if shown in (None, "", (), []) or callable(shown):
        return ""
    return "`" + ", ".join(map(str, shown if isinstance(shown, list | tuple) else [shown])) + "`"


def _package(name: str) -> str:
    package = import_module(name)
    rows = [
        (f"`{_call(one, getattr(package, one))}`", _sentence(_doc(getattr(package, one)))) for one in package.__all__
    ]
    return f"### {name}\n\n{_table(('name', 'what it is'), rows)}\n"


def _call(name: str, found: object) -> str:
    """Return a function with the names of its parameters; anything else as its name."""
    if not (inspect.isfunction(found) or inspect.ismethod(found) or name == "capture"):
        return name
    parts = [str(one.replace(annotation=one.empty, default=one.empty)) for one in _parameters(found)]
    return f"{name}({', '.join(parts)})"


def _parameters(found: Any) -> Iterable[inspect.Parameter]:
    return inspect.signature(found).parameters.values()


def _doc(found: object) -> str:
    if isinstance(found, type) or inspect.ismodule(found) or callable(found):
        return (
            inspect.getdoc(getattr(found, "capture", found) if inspect.ismodule(found) and callable(found) else found)
            or ""
        )
    return f"{type(found).__name__}"


def _errors() -> str:
    found = [one for one in vars(errors).values() if isinstance(one, type)]
    rows = [
        (f"`{one.__name__}`", " ".join(f"`{base.__name__}`" for base in one.__bases__), _sentence(_doc(one)))
        for one in found
    ]
    return f"### actscope.errors\n\n{_table(('error', 'is a', 'meaning'), rows)}\n"


def _variables() -> str:
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for name in () if "bench" in path.parts else _VARIABLE.findall(path.read_text()):
            found.setdefault(name, set()).add(path.relative_to(ROOT / "src/actscope").parts[0].removesuffix(".py"))
    rows = [(f"`{name}`", ", ".join(f"`{room}`" for room in sorted(rooms))) for name, rooms in sorted(found.items())]
    return VARIABLES + _table(("variable", "read by"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(_cell(cell) for cell in cells)} |\n" for cells in _lines(head, rows))


def _lines(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    yield head
    yield tuple("---" for _ in head)
    yield from rows


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _sentence(text: str | None) -> str:
    """Return the first sentence of a docstring."""
    first = " ".join((text or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", first)[0]


def main(check: bool) -> int:
    """Write the page, or say that it differs. Returns the exit code."""
    new = page()
    if PAGE.exists() and PAGE.read_text() == new:
        return 0
    print(f"docs/{PAGE.name}: {'differs from the code: run make tables' if check else 'written'}")
    if not check:
        PAGE.write_text(new)
    return int(check)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
