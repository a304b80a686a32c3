"""Labels for calls of a module without token ids: one request per batch item, positions along the other dimensions."""

from __future__ import annotations

from math import prod

import numpy as np

from actscope.capture.labels.position_filter import PositionFilter
from actscope.capture.labels.scopes import Scope
from actscope.capture.labels.sequences import Sequences
from actscope.capture.labels.token_labels import Cells, Labelled, Requests, assemble


class ItemLabels:
    """Labels calls of a module that takes no token ids: token_id is -1, flags are 0. Thread-safe.

    Every call starts new requests. Within `cap.request(...)` later calls continue the same requests and their positions.
    """

    def __init__(self, requests: Requests, granularity: PositionFilter) -> None:
        self.requests = requests
        self._granularity = granularity

    def label(self, shape: tuple[int, ...], scope: Scope, number: int) -> Labelled:
        """Return the labels of rows with leading dimensions `shape` [items, ...], as step `number`."""
        items, rows = shape[0], prod(shape[1:])
        earlier = scope.story.latest if scope.story is not None else None
        if earlier is not None and len(earlier.requests) == items:
            sequences = earlier
        else:
            sequences = Sequences.begin(self.requests.naming.name(scope.ids, items), self.requests.keep)
        positions = sequences.reach[:, None] + np.arange(rows)
        cells = Cells(positions, np.zeros(positions.shape, np.uint32), None, np.ones(positions.shape, bool))
        return assemble(self.requests, self._granularity, sequences, cells, number, lambda: _advance(sequences, rows))

    def finish(self, labelled: Labelled, scope: Scope) -> None:
        """Update the state after a complete call."""
        labelled.finish()
        self.requests.ran(labelled.sequences)
        if scope.story is not None:
            self.requests.tell(scope.story, labelled.sequences)
        self.requests.end_if_done(labelled.sequences)


def _advance(sequences: Sequences, rows: int) -> None:
    sequences.reach = sequences.reach + rows
    sequences.passes += 1
