"""Samples that a benchmark measures in rounds, and its results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Result = dict[str, Any]
Progress = Callable[[str], None]


class Samples:
    """Values by name, one per round."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.of.setdefault(name, []).append(value)

    def ratios(self, name: str, other: str) -> list[float]:
        """Return the ratios of two names measured in the same rounds, round by round."""
        return [a / b for a, b in zip(self.of[name], self.of[other], strict=True)]


def result(name: str, values: Sequence[float], unit: str, baseline: str, *, bar: float | None = None) -> Result:
    """Make a result from the median, minimum and maximum. `bar` is the minimum for the median."""
    value = statistics.median(values)
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline, "runs": len(values), "min": min(values),
        "max": max(values), "bar": bar, "ok": bar is None or value >= bar,
    }  # fmt: skip


def absent(name: str, unit: str, why: str) -> Result:
    """Make the result of a comparison that was not possible, with the reason `why`."""
    return {
        "name": name, "value": None, "unit": unit, "baseline": f"absent: {why}", "runs": 0, "min": None, "max": None,
        "bar": None, "ok": True,
    }  # fmt: skip
