"""Every option, public call and variable is in a page."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import typer

from actscope.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = "".join(page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
PACKAGES = (
    "actscope", "actscope.analysis", "actscope.client", "actscope.codecs", "actscope.feed", "actscope.gateway",
    "actscope.harvest", "actscope.probes", "actscope.probes.importing", "actscope.probes.sae", "actscope.recording.export",
    "actscope.recording.importing", "actscope.store",
)  # fmt: skip


def is_named(name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", PAGES) is not None


def test_every_option_of_every_command_is_in_a_page() -> None:
    commands = list(typer.main.get_command(app).commands.values())  # type: ignore[attr-defined]
    commands += [inner for one in commands for inner in getattr(one, "commands", {}).values()]
    flags = {flag for one in commands for p in one.params for flag in (*p.opts, *p.secondary_opts) if flag[:2] == "--"}
    assert sorted(flag for flag in flags - {"--help"} if not is_named(flag)) == []
    assert len(flags) > 100


def test_every_public_name_is_in_a_page() -> None:
    names = {f"{package}.{name}" for package in PACKAGES for name in import_module(package).__all__}
    assert sorted(name for name in names if not is_named(name.rpartition(".")[2])) == []


def test_every_variable_is_in_a_page() -> None:
    sources = [path for path in (ROOT / "src").rglob("*.py") if "bench" not in path.parts]
    found = {
        name for path in sources for name in re.findall(r'"((?:ACTSCOPE|VLLM_CAPTURE)_[A-Z_]*[A-Z])"', path.read_text())
    }
    assert sorted(name for name in found if not is_named(name)) == []
    assert "ACTSCOPE_TOKEN" in found


def test_the_reference_is_that_of_the_code() -> None:
    """After a change of an option or a public name: make tables."""
    script = ROOT / "scripts/reference_tables.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
