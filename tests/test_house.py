"""The plan of the house: imports point down, circles do not exist, folders and files stay small, and a name means one thing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

import actscope

ROOT = Path(actscope.__file__).parent
#: Rooms of one layer may import lower layers and themselves, not each other.
LAYERS = {
    0: (
        "counters",
        "errors",
        "extras",
        "near_miss",
        "sites",
        "frames",
        "clock",
        "sampling",
        "permutation",
        "_version",
        "_lazy",
        "sizes",
        "runtime",
    ),
    1: ("serving", "codecs", "ring", "store"),
    2: ("probes", "recording"),
    3: ("taps", "analysis", "metrics"),
    4: ("engines",),
    5: ("capture",),
    6: ("extraction",),
    7: ("gateway", "client", "feed", "harvest"),
    8: ("compat", "cli", "bench", "__main__"),
    9: ("",),
}
TOP = ""
#: Old names that are kept for one release.
ALIASES = {("actscope.capture.config", "actscope")}
MOST_FILES, MOST_LINES, MOST_ANY = 14, 600, 202
#: One file a command.
CROWDED = {"cli"}
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


def room_of(module: str) -> str:
    """The room of a module; the package itself is the top floor."""
    return ".".join(module.split(".")[1:2]) or TOP


def upward_arrows(known: dict[str, Path]) -> list[str]:
    """Imports, lazy ones too, of a room above one's own or of another room of the same floor."""
    wrong = []
    for name, path in known.items():
        own = room_of(name)
        for imported in imports_of(path, set(known)):
            other = room_of(imported)
            if own in (other, TOP) or (name, imported) in ALIASES:
                continue
            up, sibling = LAYER_OF[other] > LAYER_OF[own], LAYER_OF[other] == LAYER_OF[own]
            if up or (sibling and LAYER_OF[own] not in (0, 8)):
                wrong.append(f"{name} -> {imported}")
    return wrong


def folder_circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles among the files and folders that lie beside each other, at every level; a package's __init__ aside."""
    found = []
    packages = {".".join(name.split(".")[:depth]) for name in graph for depth in range(1, name.count(".") + 1)}
    for package in sorted(packages):
        beside: dict[str, set[str]] = defaultdict(set)
        for name, imported in graph.items():
            one = _child(package, name)
            beside[one] |= {_child(package, other) for other in imported} - {one, ""} if one else set()
        found += [f"{package}: {circle}" for circle in _circles(beside)]
    return found


def _child(package: str, module: str) -> str:
    """The file or folder of `package` that a module lies in; "" for the package itself and for what lies elsewhere."""
    return module.removeprefix(package + ".").partition(".")[0] if module.startswith(package + ".") else ""


def _circles(graph: dict[str, set[str]]) -> list[str]:
    found, done = [], set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            found.append(" -> ".join((*way[way.index(name) :], name)))
        elif name not in done:
            for imported in sorted(graph.get(name, ())):
                visit(imported, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    return found


def crowded_folders(known: Iterable[Path]) -> dict[str, int]:
    """Folders with more files than a reader takes in at once, __init__ aside."""
    files = Counter(path.parent for path in known if path.name != "__init__.py")
    counts = {str(folder.relative_to(ROOT)): n for folder, n in files.items()}
    return {folder: n for folder, n in counts.items() if n > MOST_FILES and folder not in CROWDED}


def classes_defined_twice(known: dict[str, Path]) -> dict[str, list[str]]:
    """Class names with more than one home. Schemas are left out: they name the parts of an OpenAPI document."""
    homes = defaultdict(list)
    for name, path in known.items():
        if path.name != "schemas.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(name)
    return {name: where for name, where in homes.items() if len(where) > 1}


def count_any(path: Path) -> int:
    """How often a file writes `Any`, the import aside."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    lines = {token.start[0] for token in tokens if token.string in ("import", "from")}
    return sum(token.string == "Any" and token.start[0] not in lines for token in tokens)


def test_imports_point_down_and_siblings_do_not_meet() -> None:
    """No module imports a room above its own, nor another room of its own layer (L0, the words, and the top, excepted)."""
    assert upward_arrows(modules()) == []


def test_no_folders_import_each_other_in_a_circle() -> None:
    """Whatever lies side by side, files and folders, can be read in an order in which nothing refers back."""
    known = modules()
    graph = {name: imports_of(path, set(known)) - {name} for name, path in known.items() if path.name != "__init__.py"}
    assert folder_circles(graph) == []


def test_a_folder_has_few_files() -> None:
    assert crowded_folders(modules().values()) == {}


def test_a_file_is_short() -> None:
    long = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in long.items() if n > MOST_LINES} == {}


def test_a_class_name_has_one_meaning() -> None:
    assert classes_defined_twice(modules()) == {}


#: Decoders of msgspec and json, which raise more than their own errors, and those that run code.
RAW_DECODERS = (
    "json.load", "json.loads", "msgspec.json.decode", "msgspec.json.Decoder", "msgspec.msgpack.decode", "msgspec.msgpack.Decoder",
    "pickle.load", "pickle.loads", "marshal.loads", "torch.load", "yaml.load", "joblib.load",
)  # fmt: skip
#: Files that use them, and why: what they decode is our own, or their errors become those of their protocol.
DECODES_ITSELF = {
    "runtime/decoding.py": "the one place",
    "cli/common/completion.py": "answers of the gateway that this process runs",
    "engines/builtin/card.py": "files of this package",
    "engines/builtin/evaluate.py": "files of this package",
    "engines/hf/__main__.py": "settings from the process that started this one",
    "engines/hf/api/fields.py": "its errors name the parameter, in OpenAI's form",
    "engines/hf/api/prompts.py": "arguments of a call that a model wrote: malformed ones are none",
    "engines/hf/server.py": "an answer that this process has just encoded",
    "engines/replay/texts.py": "a tokenizer.json that the tokenizers library has read before",
    "engines/vllm/plugin.py": "settings from the process that started this one",
    "engines/vllm/sidecar/__main__.py": "settings from the process that started this one",
    "engines/vllm/sidecar/probe_registry.py": "a table that it has just encoded",
    "feed/generator/link.py": "settings from the process that started this one",
    "gateway/api/completion.py": "its errors are those of the wire",
    "gateway/api/completion_request.py": "its errors are those of the wire",
    "gateway/api/conversation.py": "its errors are those of the wire",
    "gateway/api/conversation_request.py": "its errors are those of the wire",
    "gateway/scores/detokenizer.py": "any error of a tokenizer is turned there",
    "harvest/workers/worker_process.py": "settings from the process that started this one",
    "serving/json_body.py": "its errors are those of the wire",
}


def raw_decoders(path: Path) -> list[str]:
    """Uses of decoders that raise foreign errors, called or handed on."""
    used = (ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute))
    return [name for name in used if name in RAW_DECODERS]


def test_foreign_bytes_are_decoded_in_one_place() -> None:
    """Elsewhere a reader would have to list all that its decoder raises. Benches read what they wrote."""
    using = {str(path.relative_to(ROOT)) for path in modules().values() if raw_decoders(path)}
    assert {name for name in using if not name.startswith("bench/")} == set(DECODES_ITSELF)


def test_any_does_not_spread() -> None:
    """`Any` belongs to the edge to torch, vLLM and JSON. Where it gets rarer, the bound follows."""
    assert sum(map(count_any, modules().values())) <= MOST_ANY


def written(folder: Path, files: dict[str, str]) -> dict[str, Path]:
    """Modules of a made-up package, as `modules` gives them."""
    known = {}
    for name, text in files.items():
        known[name] = folder / f"{name}.py"
        known[name].write_text(text)
    return known


def test_the_plan_sees_what_breaks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lazy import of a room above, one of the package itself, a circle of folders, a name with two meanings, an Any."""
    known = written(
        tmp_path,
        {
            "actscope": "",
            "actscope.ring.reader": "def read():\n    from actscope.gateway.app import x",
            "actscope.clock": "import actscope",
            "actscope.gateway.app": "class Batch: ...",
            "actscope.feed.client.near": "from actscope.feed.server.app import y\nclass Batch: ...",
            "actscope.feed.server.app": "import actscope.feed.client.near\nfrom typing import Any\ny: Any = 1",
        },
    )
    assert upward_arrows(known) == ["actscope.ring.reader -> actscope.gateway.app", "actscope.clock -> actscope"]
    graph = {name: imports_of(path, set(known)) for name, path in known.items()}
    assert folder_circles(graph) == ["actscope.feed: client -> server -> client"]
    assert list(classes_defined_twice(known)) == ["Batch"]
    assert count_any(known["actscope.feed.server.app"]) == 1
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert crowded_folders([tmp_path / "feed" / f"{i}.py" for i in range(MOST_FILES + 1)]) == {"feed": MOST_FILES + 1}


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (ROOT / "py.typed").exists()


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
