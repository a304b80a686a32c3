"""The extras are written in pyproject.toml, in the module that checks for packages, on the install page and in messages."""

from __future__ import annotations

import re
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.install.closure import closure, project

from actscope.errors import MissingExtra
from actscope.extras import BASE, EXTRAS, INCLUDES, extra_of, require

ROOT = Path(__file__).parents[2]
#: Extras for work on actscope itself, of which commands and messages say nothing.
OURS = {"dev", "peers"}
_ROW = re.compile(r"^\| (?:`(\w+)`|none) \| .+ \|([^|]*)\| ([\d,]+) \| ([\d,]+) \|$", re.MULTILINE)


def rows() -> dict[str, tuple[set[str], int]]:
    """The table of the install page: of each extra, "" for none, what it includes and its number of packages."""
    found = _ROW.findall((ROOT / "docs/install.md").read_text())
    return {extra: (set(re.findall(r"`(\w+)`", included)), int(n.replace(",", ""))) for extra, included, n, _ in found}


#: Packages that many distributions put modules into, and those that are asked for.
SHARED = {"opentelemetry": ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"]}


def asked(lines: list[str]) -> tuple[set[str], set[str]]:
    """The distributions that requirements name, and the extras of actscope among them."""
    found = [Requirement(line) for line in lines]
    ours = [one for one in found if one.name == "actscope"]
    return {canonicalize_name(one.name) for one in found if one not in ours}, {x for one in ours for x in one.extras}


def distributions_of(modules: tuple[str, ...]) -> set[str]:
    """The distributions that packages are imported from."""
    homes = {**packages_distributions(), **SHARED}
    return {canonicalize_name(owner) for module in modules for owner in homes[module]}


def test_what_is_checked_before_work_is_what_the_extras_install() -> None:
    """`actscope.extras` repeats pyproject.toml: each extra's packages, and the extras that it includes."""
    extras = {name: asked(lines) for name, lines in project()["optional-dependencies"].items() if name not in OURS}
    assert extras == {name: (distributions_of(EXTRAS[name]), set(INCLUDES.get(name, ()))) for name in EXTRAS}
    assert asked(project()["dependencies"]) == (distributions_of(BASE), set())


def test_the_install_page_has_every_extra_with_what_it_includes_and_how_many_packages_it_is() -> None:
    assert {extra: included for extra, (included, _) in rows().items()} == {
        extra: set(INCLUDES.get(extra, ())) for extra in ("", *EXTRAS)
    }
    counted = {extra: len(closure(*filter(None, [extra]))) for extra in rows()}
    assert {extra: n for extra, (_, n) in rows().items()} == counted


def test_an_extra_that_a_text_names_exists() -> None:
    """No page, message or script tells users to install an extra that is not there."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / "src").rglob("*.py"), *ROOT.glob("scripts/*")]
    named = {
        (page.name, extra)
        for page in pages
        if page.is_file()
        for extras in re.findall(r"actscope\[([\w,]+)\]", page.read_text())
        for extra in extras.split(",")
    }
    assert {(page, extra) for page, extra in named if extra not in {*EXTRAS, *OURS, "extra"}} == set()
    raised = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r'(?:MissingExtra|require)\(\s*"([\w,]+)"', path.read_text())
    }
    assert raised and {extra for extras in raised for extra in extras.split(",")} <= {*EXTRAS, *OURS}


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message, one line to type; nothing is imported."""
    monkeypatch.setitem(EXTRAS, "export", ("absent_one", "numpy", "absent_two"))
    with pytest.raises(
        MissingExtra, match=r"needs absent_one and absent_two, which are not .* pip install 'actscope\[export\]'"
    ):
        require("export")
    require("export", "numpy")


def test_a_module_is_known_by_its_package() -> None:
    assert (extra_of("torch.nn.functional"), extra_of("rich.console"), extra_of("absent")) == ("hf", "", None)
