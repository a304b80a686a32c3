"""Context manager that silences `datasets` and the hub's client: no progress bars, no warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import CRITICAL
from typing import Protocol


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress their progress bars, logs and warnings in a block, and restore the settings after it. Errors still raise."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    with ExitStack() as stack:
        stack.enter_context(_no_bars())
        for log in (datasets.logging, hub_logging):
            stack.enter_context(_errors_only(log))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


class _Verbosity(Protocol):
    """The logging modules of `datasets` and `huggingface_hub`."""

    def get_verbosity(self) -> int: ...

    def set_verbosity(self, verbosity: int, /) -> None: ...


@contextmanager
def _errors_only(log: _Verbosity) -> Iterator[None]:
    before = log.get_verbosity()
    log.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        log.set_verbosity(before)


@contextmanager
def _no_bars() -> Iterator[None]:
    from datasets import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from huggingface_hub.utils.tqdm import disable_progress_bars as disable_hub_bars
    from huggingface_hub.utils.tqdm import enable_progress_bars as enable_hub_bars

    own, hub = is_progress_bar_enabled(), not are_progress_bars_disabled()
    disable_progress_bars()
    disable_hub_bars()
    try:
        yield
    finally:
        if own:
            enable_progress_bars()
        if hub:
            enable_hub_bars()
