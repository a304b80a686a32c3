"""What is shipped is whole, and what is promised is documented."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer

from actscope.cli.app import app
from actscope.engines.vllm.settings import CARRIER, REPLICAS, VllmSettings

ROOT = Path(__file__).parents[1]
MAX_FILE = 10 << 20
#: Set by one of our processes for another, never by people.
INTERNAL = {name.removeprefix("ACTSCOPE_") for name in (CARRIER, REPLICAS)}


def test_no_file_of_the_repository_is_above_10_mb() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: a source distribution has no list of its files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE} == {}


def test_every_command_is_in_the_guide() -> None:
    guide = (ROOT / "docs/guide.md").read_text()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert [name for name in commands if f"actscope {name}" not in guide] == []


def test_every_environment_variable_that_is_read_is_in_the_guide() -> None:
    guide = (ROOT / "docs/guide.md").read_text() + (ROOT / "docs/vllm.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    names = set(re.findall(r'"ACTSCOPE_([A-Z_]+)"', source)) - {name.upper() for name in VllmSettings.__struct_fields__}
    assert [name for name in sorted(names - INTERNAL) if f"ACTSCOPE_{name}" not in guide] == []


def test_every_relative_link_of_the_docs_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), ROOT / "web/README.md", *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []
