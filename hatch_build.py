"""The build's own check: a wheel or an sdist always carries the scope page. Editable installs are unaffected."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_STATIC = Path("src", "actscope", "gateway", "static")
_ASSET = re.compile(r'(?:src|href)="(?:\./|/)?([^":?#]+)"')


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    """Fails a build in which the page, or a file that the page loads, is missing."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Check the page before anything is written. `version` is "editable" for `pip install --editable`."""
        if version == "editable":
            return
        static = Path(self.root, _STATIC)
        index = static / "index.html"
        if not index.is_file():
            raise FileNotFoundError(_advice("it is not built"))
        lost = [name for name in _ASSET.findall(index.read_text(encoding="utf-8")) if not (static / name).is_file()]
        if lost:
            raise FileNotFoundError(_advice(f"it loads {', '.join(lost)}, which is not there"))


def _advice(what: str) -> str:
    return (
        f"a wheel of actscope carries the scope page ({_STATIC.as_posix()}), and {what}. Build the page first, with Node 20: "
        "make page (or: cd web && npm ci && npm run build). For a development install: pip install --editable ."
    )
