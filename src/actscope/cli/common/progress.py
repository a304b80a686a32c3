"""Progress of long operations on standard error: bars on a terminal, otherwise at most one line every 10 seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from actscope.cli.common.output import show
from actscope.cli.common.settings_options import Given
from actscope.runtime.printable import one_line

if TYPE_CHECKING:
    from actscope.engines.hf.loading import LoadedModel

_EVERY_S = 10.0  # interval of the lines without a terminal
_MOST_BARS = 8  # older bars are hidden, so that all fit a small terminal


def load_with_spinner(model: str, placed: Given) -> LoadedModel:
    """Load a model on the given device in the given dtype. Shows a spinner in place of transformers' own progress bars."""
    from transformers.utils import logging

    from actscope.engines.hf.loading import load

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with Console(stderr=True).status(f"loading {one_line(model)} …"):
        return load(model, **placed)


class ProgressBar:
    """A progress bar for each named stage. A context manager. Without a terminal, work shorter than 10 seconds prints nothing."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
        )
        self._bars = RichProgress(*columns, console=console) if console.is_terminal else None
        self._stages: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of a stage are done."""
        shown = f"{done}/{total}" if total < 100_000 else f"{done / total:.0%}"
        if self._bars is not None:
            self._draw(self._bars, one_line(stage), done, total, shown)
        elif time.monotonic() - self._told > _EVERY_S:
            self._told = time.monotonic()
            show(f"{stage}: {shown}", err=True)

    def _draw(self, bars: RichProgress, stage: str, done: int, total: int, shown: str) -> None:
        if stage not in self._stages:
            for old in list(self._stages.values())[: 1 - _MOST_BARS]:
                bars.update(old, visible=False)
            self._stages[stage] = bars.add_task(stage, total=total, shown=shown)
            bars.start()
        bars.update(self._stages[stage], completed=done, total=total, shown=shown)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None and self._stages:
            self._bars.stop()
