"""The plan of the house: imports point down, circles do not exist, and the front door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import actscope

ROOT = Path(actscope.__file__).parent
#: Rooms of one layer may import lower layers and themselves, not each other.
LAYERS = {
    0: ("errors", "sites", "frames", "clock", "sampling", "permutation", "_version", "_lazy", "sizes", "runtime"),
    1: ("serving", "codecs", "ring", "store"),
    2: ("probes", "recording"),
    3: ("taps", "analysis"),
    4: ("engines",),
    5: ("capture",),
    6: ("extraction",),
    7: ("gateway", "feed", "harvest"),
    8: ("cli", "bench", "__main__"),
}
LAYER_OF = {room: layer for layer, rooms in LAYERS.items() for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("actscope", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports anywhere in it, lazily too; not those for type checking only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = {id(n) for block in ast.walk(tree) if _type_checking(block) for n in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the house imports absolutely"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in known}


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def test_imports_point_down_and_siblings_do_not_meet() -> None:
    """No module imports a room above its own, nor another room of its own layer (L0, the words, and the top, excepted)."""
    known = modules()
    wrong = []
    for name, path in known.items():
        own = room_of(name)
        for imported in imports_of(path, set(known)):
            other = room_of(imported)
            if own is None or other is None or own == other:
                continue
            up, sibling = LAYER_OF[other] > LAYER_OF[own], LAYER_OF[other] == LAYER_OF[own]
            if up or (sibling and LAYER_OF[own] not in (0, max(LAYERS))):
                wrong.append(f"{name} -> {imported}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Following imports never leads back to where one began."""
    known = modules()
    graph = {name: imports_of(path, set(known)) - {name} for name, path in known.items()}
    # a package's __init__ re-exporting its own modules is no circle for the modules that import siblings directly
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_importing_actscope_is_light() -> None:
    """`import actscope`, and the command line's help, load neither torch, transformers, vLLM nor FastAPI."""
    code = (
        "import sys, actscope, actscope.cli.app;"
        "print([m for m in ('torch', 'transformers', 'vllm', 'fastapi', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_probes_marks_and_recording_are_served_without_torch() -> None:
    """A process beside the model's own, which has no model, can answer for its probes and its recording."""
    code = "import sys, actscope.engines.controls, actscope.engines.http; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_capture_is_callable_whatever_was_imported_before_it() -> None:
    """`actscope.capture` is the name of a package and of a function; it is callable in every order of imports."""
    for before in ("pass", "import actscope.capture.config", "from actscope import capture", "import actscope.capture"):
        code = (
            f"import inspect, actscope; {before}; found = actscope.capture; assert callable(found);"
            "assert list(inspect.signature(found).parameters)[0] == 'model', inspect.signature(found);"
            "from actscope.capture import capture; assert inspect.isfunction(capture)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
