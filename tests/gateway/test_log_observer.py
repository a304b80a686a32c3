"""Scores of request logs are counted once each, whatever their logs do, and few series come of many probes."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client.core import Metric

from actscope.gateway.scores.probe_table import ProbeTable, table_of
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.telemetry import observer
from actscope.gateway.telemetry.observer import LogObserver
from actscope.serving.telemetry.histograms import OTHER


def table(*ids: str, masked: bool = False) -> ProbeTable:
    mask = {"token_mask": "special"} if masked else {}
    probes = [{"slot": n, "id": name, "site": "s", "threshold": 0.5, **mask} for n, name in enumerate(ids)]
    return table_of({"generation": 1, "probes": probes})


def log_of(
    observed: LogObserver, tokens: int, *, follows_rows: bool = False, special: frozenset[int] = frozenset()
) -> RequestLog:
    """A log of tokens 0, 1, 2, … whose last one has no row."""
    log = RequestLog("r", special=special, follows_rows=follows_rows)
    log.on_finish = observed.ended
    if not follows_rows:
        log.set_prompt(list(range(tokens)))
    return log


def counts(families: list[Metric], name: str = "actscope_probe_score_bucket", **labels: str) -> float:
    wanted = {"le": "+Inf", **labels} if name.endswith("_bucket") else labels
    return sum(s.value for m in families for s in m.samples if s.name == name and wanted.items() <= s.labels.items())


async def test_rows_are_counted_once_while_a_request_runs_and_after() -> None:
    """At each scrape those that are new. Rows that have none of the values, or came with a cached prefix, never."""
    observed, columns = LogObserver(), table("a").columns
    log = log_of(observed, 12)
    log.take_rows(0, np.arange(2), np.full((2, 1), 0.9, np.float32), columns, 0, cached=True)
    log.take_rows(2, np.arange(2, 6), np.array([[0.1], [0.5], [np.nan], [0.7]], np.float32), columns, 0)
    assert [counts(await observed.families([log])) for _ in range(2)] == [3, 3]
    log.take_rows(6, np.arange(6, 8), np.full((2, 1), 0.2, np.float32), columns, 0)
    assert counts(await observed.families([log])) == 5
    log.take_rows(8, np.arange(8, 9), np.full((1, 1), 0.2, np.float32), columns, 0)
    log.finish("done", "stop")
    found = await observed.families([log])
    assert (counts(found), counts(found, "actscope_probe_over_threshold_tokens_total", probe="a")) == (6, 2)
    assert counts(await observed.families([])) == 6


async def test_a_masked_probe_has_no_scores_of_special_tokens() -> None:
    for masked, expected in ((True, 3), (False, 4)):
        observed = LogObserver()
        log = log_of(observed, 5, special=frozenset({0}))
        log.take_rows(0, np.arange(4), np.ones((4, 1), np.float32), table("a", masked=masked).columns, 0)
        log.finish("done", "stop")
        assert counts(await observed.families([])) == expected


async def test_rows_that_an_answer_may_still_contradict_wait_for_it() -> None:
    """The log takes its tokens from the rows; one of them is another than the answer says."""
    observed = LogObserver()
    log = log_of(observed, 0, follows_rows=True)
    log.take_rows(0, np.arange(4), np.ones((4, 1), np.float32), table("a").columns, 0)
    assert counts(await observed.families([log])) == 0
    log.settle([0, 1], [99, 3, 4])
    log.finish("done", "stop")
    found = await observed.families([log])
    assert counts(found) == 3
    assert counts(found, "actscope_request_tokens_total", kind="completion") == 3


async def test_a_request_that_did_not_end_well_has_no_latencies() -> None:
    observed = LogObserver()
    log_of(observed, 3).finish("aborted", "abort")
    found = await observed.families([])
    assert counts(found, "actscope_request_seconds_count") == 0
    assert counts(found, "actscope_request_tokens_total", kind="prompt") == 3


async def test_probes_after_the_first_ones_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "MOST_PROBES", 2)
    observed = LogObserver()
    log = log_of(observed, 5)
    log.take_rows(0, np.arange(4), np.ones((4, 6), np.float32), table(*"abcdef").columns, 0)
    log.finish("done", "stop")
    found = await observed.families([])
    assert counts(found, probe="a") == 4 and counts(found, probe=OTHER) == 16
    assert counts(found, "actscope_probe_over_threshold_tokens_total", probe=OTHER) == 16
    labels = {s.labels["probe"] for m in found for s in m.samples if "probe" in s.labels}
    assert labels == {"a", "b", OTHER}
