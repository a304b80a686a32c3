"""actscope feed: the activation server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.output import show
from actscope.cli.common.packages import is_table, require_model
from actscope.cli.common.settings_options import Given, with_settings
from actscope.errors import SettingsError
from actscope.extras import EXTRAS, SERVER, require

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actscope.cli.common.findings import Finding
    from actscope.feed.settings import FeedSettings


@with_settings
def feed(
    flags: Annotated[Given, options.FEED],
    config: Annotated[str, typer.Option(help="Preset: test, production, large-scale or env.", metavar="PRESET")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Check that the feed could start here, without loading the model, and exit.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="With --check: map the whole buffer for a moment.")] = False,
    presets: Annotated[
        bool, typer.Option("--presets", help="Print the presets and the memory that they need, and exit.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the checks, the presets, or address, token and settings.")
    ] = False,
    log_level: Annotated[
        str, typer.Option(help="Lowest level that is logged: debug, info, warning or error.", metavar="LEVEL")
    ] = "info",
    log_file: Annotated[Path | None, typer.Option(help="Log to this file too.", metavar="FILE")] = None,
) -> None:
    """Serve fresh, shuffled activations of a model over a dataset to trainers, from a buffer in shared memory.

    A preset changes some defaults. Every setting can also be given in an environment variable, ACTSCOPE_FEED_<SETTING>, and the
    token in ACTSCOPE_TOKEN. Flags override variables, and variables override the preset. See docs/feed.md.

    Example: actscope feed --config test
    """
    if presets:
        _print_presets(flags, as_json)
    elif check:
        _check(config, flags, full, as_json)
    else:
        _serve(config, flags, as_json, log_level, log_file)


def _print_presets(flags: Given, as_json: bool) -> None:
    from actscope.feed.planning.host_memory import this_machine
    from actscope.feed.planning.presets import as_text, overview

    machine = this_machine()
    lines = overview(machine, flags)
    if as_json:
        show(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        show(f"{as_text(lines)}\n\nmemory here: {machine.why}")


def _check(config: str, flags: Given, full: bool, as_json: bool) -> None:
    findings = []
    for finding in _findings(config, flags, full):
        findings.append(finding)
        if not as_json:
            show(_line(finding))
    if as_json:
        show(json.dumps([asdict(finding) for finding in findings], indent=2))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _findings(config: str, flags: Given, full: bool) -> Iterable[Finding]:
    from actscope.cli.common.findings import Finding
    from actscope.cli.feed.check import check
    from actscope.feed.planning.presets import feed_settings

    try:
        settings = feed_settings(config, flags)
    except SettingsError as error:
        return [Finding("settings", False, str(error))]
    return check(settings, whole=full)


def _line(finding: Finding) -> str:
    found = finding.found.replace("\n", "\n      ")
    remedy = f"\n      -> {finding.remedy}" if finding.remedy else ""
    return f"{'ok  ' if finding.ok else 'NO  '} {finding.what:<16} {found}{remedy}"


def _require_packages(settings: FeedSettings) -> None:
    """Raise MissingExtra if a package that the feed or its generator will need is not installed."""
    packages = (*SERVER, *(EXTRAS["feed"] if is_table(settings.dataset) else ()))
    if settings.engine == "hf":
        require_model(settings.model, *packages, extra="feed")
    else:
        require("feed", *packages)


def _serve(config: str, flags: Given, as_json: bool, log_level: str, log_file: Path | None) -> None:
    from actscope.cli.feed.logs import log_to
    from actscope.feed.planning.host_memory import this_machine
    from actscope.feed.planning.memory_estimate import check_fits, estimate
    from actscope.feed.planning.presets import feed_settings

    handlers = log_to(log_level, log_file)
    settings = feed_settings(config, flags)
    _require_packages(settings)
    check_fits(estimate(settings), this_machine())
    from actscope.cli.feed.running import run

    run(settings, as_json=as_json, handlers=handlers)
