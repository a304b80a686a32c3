"""actscope watch: follow a running engine in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.output import show
from actscope.errors import SettingsError


def watch(
    engine: options.Engine = "",
    probe: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Id of a probe to show. Repeatable. By default all.")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Number of steps to show. 0: no end.")] = 0,
    from_oldest: Annotated[bool, typer.Option(help="Start with the oldest steps in the ring.")] = False,
    compact: Annotated[
        bool, typer.Option(help="Print `[step] Batch: rows | Avg Score: mean` for steps with scores other than 0.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per step.")] = False,
) -> None:
    """Follow a running engine in the terminal: rows, requests and the highest score of each probe, for each step.

    Waits for the engine, also when it restarts.

    Example: actscope watch --probe danger --json
    """
    from actscope.cli.common import following

    if compact and as_json:
        raise SettingsError("--compact and --json: choose one")
    shown = 0
    for card, record, columns in following.follow(engine, from_oldest, set(probe or ())):
        if compact:
            text = following.as_compact(record, columns)
        else:
            text = following.as_json(card, record, columns) if as_json else following.as_text(record, columns)
        if text is None:
            continue
        show(text)
        shown += 1
        if shown == steps:
            return
