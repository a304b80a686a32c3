"""Takes the rows of a capture through the public interface, with what the product says about rows that it does not give."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from actscope.capture.session import Capture, capture
from actscope.errors import SiteError
from actscope.frames import RowSink, Step
from actscope.sites import OUTER, POINTS

_A_SITE = re.compile(r"\blayers\.\d+\.|\bembed\b|\bfinal_norm\b")


@dataclass(frozen=True, slots=True)
class Row:
    """A delivered row: the token at its position, and its values [d]."""

    token: int
    values: Tensor


class RowStore(RowSink):
    """Keeps the newest row of each request, site and position."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
        self._open: dict[int, list[tuple[str, Tensor]]] = {}

    def begin(self, step: Step) -> None:
        """Begin a step."""
        self._open[step.number] = []

    def put(self, step: Step, site: str, rows: Tensor) -> None:
        """Keep the rows of one site until the step ends."""
        self._open[step.number].append((site, rows))

    def end(self, step: Step, complete: bool = True) -> None:
        """Label the rows of a complete step; drop those of an incomplete one."""
        put = self._open.pop(step.number)
        for site, rows in put if complete else ():
            for span in step.spans:
                known = self.of[span.request][site]
                for at in range(span.offset, span.offset + span.n_rows):
                    known[int(step.meta[at]["position"])] = Row(int(step.meta[at]["token_id"]), rows[at])

    def close(self) -> None:
        """Do nothing: the rows stay in memory."""


@dataclass(slots=True)
class Captured:
    """What one capture gave: its rows, its warnings, and its counts of rows that were not delivered."""

    rows: RowStore = field(default_factory=RowStore)
    said: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    faults: int = 0


def reason_for(site: str, said: Sequence[str]) -> str:
    """Return what warnings say of a site: those that name it, else those that hold for all sites; "" if there are none.

    A reason for which rows are not recorded is logged once, with the first site in parentheses.
    """
    begin = [text for text in said if text.startswith(site)]
    own = begin or [text for text in said if re.search(rf"\b{re.escape(site)}\b", text)]
    general = [text for text in said if text.startswith("rows are not recorded") or not _A_SITE.search(text)]
    return "; ".join(dict.fromkeys(own or general))


@contextmanager
def capturing(model: nn.Module, sites: list[str]) -> Iterator[tuple[Captured, Capture]]:
    """Capture these sites while the body runs the model."""
    captured = Captured()
    with (
        warnings_of_product(captured.said),
        capture(model, sites=",".join(sites), recorder=captured.rows) as cap,
    ):
        yield captured, cap
    stats = cap.stats()
    captured.reasons, captured.faults = dict(stats.reasons), stats.faults


def offered(model: nn.Module, n_layers: int) -> tuple[list[str], dict[str, str]]:
    """Return the sites that the product accepts for a model of `n_layers` blocks, and its reason for each that it refuses."""
    names = [OUTER[0], *(f"layers.{layer}.{point}" for layer in range(n_layers) for point in POINTS), *OUTER[1:]]
    accepted: list[str] = []
    refused: dict[str, str] = {}
    for name in names:
        try:
            capture(model, sites=name, recorder=RowStore())
        except SiteError as error:
            refused[name] = str(error)
        else:
            accepted.append(name)
    return accepted, refused


class KeepWarnings(logging.Handler):
    """Appends the text of every warning of the product to a list."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        """Append one message."""
        self._said.append(record.getMessage())


@contextmanager
def warnings_of_product(said: list[str]) -> Iterator[None]:
    logger, handler = logging.getLogger("actscope"), KeepWarnings(said)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
