"""Directories that everything else needs, and checks that end in a finding whatever they meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from actscope.cli.common.findings import Finding
from actscope.errors import ActscopeError
from actscope.runtime.cache import cache_place, temporary_root
from actscope.runtime.directory import runtime_dir
from actscope.runtime.writable import can_create


def guarded(check: Callable[[], Finding]) -> Finding:
    """Run a check. An error is a NO: the doctor must work where things are broken."""
    return guarded_all(lambda: [check()], check.__name__.strip("_").replace("_", " "))[0]


def guarded_all(check: Callable[[], Iterable[Finding]], name: str = "counters") -> list[Finding]:
    """Run a check of several findings. An error ends it as a NO, after the findings that it had."""
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)
    except ActscopeError as error:
        found.append(Finding(name, False, str(error)))
    except Exception as error:  # the boundary of one check: it is reported, and the others run
        found.append(Finding(name, False, f"could not be checked: {type(error).__name__}: {error}"))
    return found


def told_once(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with each cause as one NO: later checks that it stopped were not made, and name the first."""
    first: dict[str, str] = {}
    told: list[Finding] = []
    for finding in findings:
        cause = "" if finding.ok else first.setdefault(finding.found, finding.what)
        again = cause not in ("", finding.what)
        told.append(Finding(finding.what, True, f"not checked: see {cause}") if again else finding)
    return told


def runtime() -> Finding:
    """Check the directory in which processes of this user meet."""
    remedy = "set ACTSCOPE_RUNTIME_DIR to a private directory"
    try:
        path = runtime_dir()
    except ActscopeError as error:
        return Finding("runtime folder", False, str(error), remedy)
    return (
        Finding("runtime folder", True, str(path))
        if can_create(path)
        else Finding("runtime folder", False, f"{path} can only be read", remedy)
    )


def cache() -> Finding:
    """Check the directory for probes that were trained and models that were converted."""
    try:
        place = cache_place()
    except ActscopeError as error:
        return Finding("cache", False, str(error), "set XDG_CACHE_HOME to a directory of this user")
    usual = place.name == "actscope"
    remedy = (
        ""
        if usual
        else "set XDG_CACHE_HOME: there is no home directory that can be written to, so this one may not last"
    )
    if not can_create(place):
        return Finding("cache", True, f"{place}, which can only be read", "set XDG_CACHE_HOME to keep new results")
    return Finding("cache", True, str(place), remedy)


def temporary() -> Finding:
    """Check the directory for temporary files."""
    try:
        return Finding("temporary files", True, str(temporary_root()))
    except ActscopeError as error:
        return Finding("temporary files", False, str(error), "set TMPDIR to a directory that this user can write to")


def hub() -> Finding:
    """Check the directory into which models of the Hugging Face hub are loaded."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME")
    place = Path(chosen) if chosen else Path(os.path.expanduser("~")) / ".cache" / "huggingface"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads it
    if offline and not os.path.isdir(place):
        return Finding(
            "model cache", True, "none, and none is needed: HF_HUB_OFFLINE is set, so only local models load"
        )
    if not place.is_absolute():
        return Finding("model cache", False, "there is no home directory", "set HF_HOME to a directory of this user")
    if can_create(place):
        return Finding("model cache", True, str(place))
    if os.path.isdir(place):
        return Finding("model cache", True, f"{place}, which can only be read", "set HF_HOME to load other models")
    return Finding(
        "model cache", False, f"{place} cannot be made", "set HF_HOME to a directory that this user can write to"
    )


CHECKS = (runtime, cache, temporary, hub)
