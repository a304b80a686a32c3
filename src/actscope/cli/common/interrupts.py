"""What a long command says when Ctrl-C ends it: what is kept, and what to type to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from actscope.cli.common.output import show


@contextmanager
def resumable(says: str | Callable[[], str]) -> Iterator[None]:
    """Print `says` on standard error when the block is interrupted. The interrupt then ends the command (exit code 130)."""
    try:
        yield
    except KeyboardInterrupt:
        show(says if isinstance(says, str) else says(), err=True)
        raise
