"""Draining raw rows goes on when the recording options of a request never arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines.vllm_units.test_sidecar import rings, start_of

from actscope.engines.vllm.sidecar.drain import RowDrain
from actscope.frames import Span, SpanFlag
from actscope.ring.host import RingWriter

__all__ = ["rings"]


class _Patience:
    """A condition that counts how often somebody waited in vain."""

    def __init__(self) -> None:
        self.waits = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *what: object) -> None: ...

    def wait_for(self, true: Any, timeout: float) -> bool:
        self.waits += 1
        return bool(true())


@pytest.fixture
def drain(tmp_path: Path, rings: tuple[RingWriter, RingWriter]) -> Iterator[RowDrain]:
    found = RowDrain(start_of(rings, tmp_path / "rec"), lambda message: None)
    found.begin(SimpleNamespace(recorder=SimpleNamespace(known_requests=()), end_missed=lambda requests: None))  # type: ignore[arg-type]
    yield found
    found.close()


def test_options_that_never_arrive_are_waited_for_once(drain: RowDrain, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted sidecar has no options of running requests; waiting for them must not cost a second in every step."""
    patience = _Patience()
    monkeypatch.setattr(drain, "_heard", patience)
    span = Span("r-00000000", 0, 1, 0, SpanFlag.HAS_OPTIONS)
    waited = [drain._wish_of(span) for _ in range(3)]
    assert waited == [None] * 3
    assert patience.waits == 1
