"""actscope watch: follow a running engine in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from actscope.cli.common import options
from actscope.cli.common.output import show


def watch(
    engine: options.Engine = "",
    probe: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Id of a probe to show. Repeatable. By default all.")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Number of steps to show. 0: no end.")] = 0,
    from_oldest: Annotated[bool, typer.Option(help="Start with the oldest steps in the ring.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per step.")] = False,
) -> None:
    """Follow a running engine in the terminal: rows, requests and the highest score of each probe, for each step.

    Waits for the engine, also when it restarts.

    Example: actscope watch --probe danger --json
    """
    from actscope.cli.common import following

    for seen, (card, record, columns) in enumerate(following.follow(engine, from_oldest, set(probe or ())), 1):
        text = following.as_json(card, record, columns) if as_json else following.as_text(record, columns)
        show(text)
        if seen == steps:
            return
