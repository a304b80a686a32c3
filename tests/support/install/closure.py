"""What `pip install 'actscope[extra]'` alone would install, of the packages that this environment has."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from actscope.extras import EXTRAS, INCLUDES

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
OURS = "actscope"


def project() -> dict[str, Any]:
    """Return the table [project] of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return found


def packages_of(*extras: str) -> set[str]:
    """Return the import names of the packages of extras, and of the extras that they include, by `actscope.extras`."""
    found: set[str] = set()
    for extra in extras:
        found |= {*EXTRAS[extra], *packages_of(*INCLUDES.get(extra, ()))}
    return found


def closure(*extras: str, beside: tuple[str, ...] = ()) -> set[str]:
    """Return the normalized names of what actscope with these extras, and the distributions `beside` it, need; itself left out.

    Fails where this environment lacks one, or has another version: then it does not tell what pip would install.
    """
    known = {canonicalize_name(found.metadata["Name"]): found.requires or [] for found in distributions()}
    ours = project()
    known[canonicalize_name(OURS)] = [*ours["dependencies"]] + [
        f"{line.partition(';')[0]}; extra == '{extra}'"
        for extra in ours["optional-dependencies"]
        for line in ours["optional-dependencies"][extra]
    ]
    done: dict[str, set[str]] = defaultdict(set)
    todo = [
        (canonicalize_name(OURS), frozenset(extras)),
        *((canonicalize_name(name), frozenset[str]()) for name in beside),
    ]
    while todo:
        name, wanted = todo.pop()
        if name in done and wanted <= done[name]:
            continue
        done[name] |= wanted
        for line in known[name]:
            one = Requirement(line)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                todo.append((canonicalize_name(one.name), frozenset(one.extras)))
    return set(done) - {canonicalize_name(OURS)}


def hidden_modules(*extras: str, beside: tuple[str, ...] = ()) -> list[str]:
    """Return the top-level modules of this environment that such an installation would not have."""
    there = closure(*extras, beside=beside) | {OURS, "pip", "setuptools"}
    homes = packages_distributions()
    return sorted(name for name, owners in homes.items() if not there & {canonicalize_name(owner) for owner in owners})
