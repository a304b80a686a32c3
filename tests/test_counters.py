"""Every counter says what it counts and what to do, wherever it is shown."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from actscope.counters import (
    CLASSES,
    TROUBLE,
    Counter,
    CounterLog,
    CounterReport,
    counted,
    counters_of,
    counting,
    current,
    line_of,
    meanings,
    summed,
)

SCRIPTS = Path(__file__).parents[1] / "scripts"


@dataclass(slots=True)
class Undescribed:
    """As a class of counts is before anybody has written what its field means."""

    lost_rows: int = 0
    seconds: float = 0.0


def test_every_field_of_a_class_of_counts_has_a_meaning_and_every_trouble_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from counter_tables import classes  # type: ignore[import-not-found]

    found = classes()
    assert len(found) >= 15
    for kind in found:
        for name, meaning in meanings(kind).items():
            where = f"{kind.__qualname__}.{name}"
            assert meaning is not None, f"{where}: make it with `counted` or `current`"
            assert meaning.help.endswith(".") and len(meaning.help) > 12, where
            assert bool(meaning.todo) == (meaning.kind in TROUBLE), where


def test_the_page_of_counters_is_that_of_the_code() -> None:
    asked = [sys.executable, str(SCRIPTS / "counter_tables.py"), "--check"]
    assert subprocess.run(asked, capture_output=True, timeout=120, check=False).returncode == 0, "run make tables"


def test_a_new_field_is_shown_before_anybody_describes_it() -> None:
    """Under its name, and without a remedy; what is no whole number is left out."""
    assert counters_of(Undescribed(lost_rows=3), "new") == [Counter("new_lost_rows", 3, "work", "new lost rows")]
    assert meanings(Undescribed) == {"lost_rows": None}


def test_counters_take_their_names_from_the_class_and_the_field() -> None:
    @counting("ferry")
    @dataclass
    class FerryCounts:
        lost: int = counted("loss", "Passengers that were lost.", "Count them again.")
        aboard: int = current("Passengers that are aboard.")

    try:
        shown = counters_of(FerryCounts(2, 5))
        assert [(one.name, one.value, one.kind, one.tells) for one in shown] == [
            ("ferry_lost", 2, "loss", True),
            ("ferry_aboard", 5, "now", False),
        ]
        assert [one.name for one in counters_of(FerryCounts(), "raft")] == ["raft_lost", "raft_aboard"]
        assert {one.default for one in fields(FerryCounts)} == {0}
    finally:
        del CLASSES[FerryCounts]


def test_each_kind_is_logged_once_and_at_powers_of_ten(caplog: pytest.LogCaptureFixture) -> None:
    """A loss of 1, 2, 11, 12, 99 and 1000 rows is three lines; work and current values are none."""
    told = CounterLog(logging.getLogger("actscope.test"))
    for value in (0, 1, 2, 11, 12, 99, 1000):
        told.tell([Counter("a", value, "loss", "Rows.", "Do it."), Counter("b", value, "work", "Rows.")])
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in said] == ["a = 1", "a = 11", "a = 1000"]
    assert said[0] == "a = 1: Rows. What to do: Do it"


def test_reports_of_several_processes_are_added_up_by_name() -> None:
    reports = [
        CounterReport("model", [Counter("rows", 2), Counter("x", 1)]),
        CounterReport("model", [Counter("rows", 3)]),
    ]
    assert [(one.name, one.value) for one in summed(reports)] == [("rows", 5), ("x", 1)]


def test_a_line_has_no_control_characters() -> None:
    """A report may come from a file: no escape of it reaches a terminal."""
    assert line_of(Counter("a", 1, "loss", "x\x1b[2J\u202ey\nz", "")) == "a = 1: x?[2J?y?z"
