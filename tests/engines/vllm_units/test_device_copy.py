"""The copier of GPUs, without one: stand-ins take the place of CUDA's streams, events and pinned memory, and the rest is real."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.waiting import until

from actscope.engines.vllm.publishing import device_copy
from actscope.engines.vllm.publishing.device_copy import CudaCopier, HostPass
from actscope.engines.vllm.runners import PassBatch
from actscope.taps.tap import TapBuffers


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch) -> Any:
    stand_in = SimpleNamespace(
        wait_stream=lambda other: None,
        wait_event=lambda event: None,
        record=lambda stream: None,
        synchronize=lambda: None,
    )
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *what: stand_in)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    plain = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **how: plain(*shape, **how))
    buffers = TapBuffers(n_sites=1, kept=[0], d=2, width=1, max_rows=8, dtype=torch.float32, device=torch.device("cpu"))
    found = CudaCopier(buffers, 8, 4, 1e9)
    yield found
    found.close()


def batch(positions: Any = None) -> PassBatch:
    at = torch.arange(8) if positions is None else positions
    return PassBatch(["a"], np.array([0, 2]), 2, at, torch.zeros(8, dtype=torch.int32), None)


def test_a_fault_between_taking_a_berth_and_landing_gives_the_berth_back(copier: CudaCopier) -> None:
    """After more faults than there are berths, passes still go through."""
    landed: list[HostPass] = []
    for _ in range(10):
        with pytest.raises(TypeError):
            copier.copy(batch(positions=object()), True, landed.append, lambda: None)
    assert copier.copy(batch(), True, landed.append, lambda: None)
    until(lambda: landed, what="a pass that lands")


def test_a_copy_that_fails_on_its_way_is_counted_and_its_requests_begin_and_end(
    copier: CudaCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known without the rows is published; the berth is free again."""
    lost: list[int] = []

    def broken(*what: object) -> HostPass:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as breaking:
        breaking.setattr(device_copy._Staging, "on_host", broken)
        tried: list[int] = []
        for n in range(6):
            until(lambda: copier.copy(batch(), False, _never, lambda: lost.append(1)), what="a free berth")
            tried.append(n)
            until(lambda: len(lost) == len(tried), what="the pass without its rows")
    until(lambda: copier.failed == 6, what="six counted passes")
    landed: list[HostPass] = []
    assert copier.copy(batch(), False, landed.append, lambda: None)
    until(lambda: landed, what="a pass that lands")


def _never(on_host: HostPass) -> None:
    raise AssertionError("there is nothing to publish")
