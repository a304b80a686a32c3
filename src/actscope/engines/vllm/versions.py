"""vLLM versions that the adapters were tested with."""

from __future__ import annotations

import re

#: First and last minor version that the tests have run against, as (major, minor).
TESTED = ((0, 32), (0, 32))


def tested_range() -> str:
    """Return the tested versions as text: "0.32.x", or "0.32.x to 0.33.x"."""
    first, last = ("{}.{}.x".format(*version) for version in TESTED)
    return first if first == last else f"{first} to {last}"


def is_tested(version: str) -> bool:
    """Return whether a version such as "0.32.0+cpu" is in the tested range."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and TESTED[0] <= (int(match[1]), int(match[2])) <= TESTED[1]
