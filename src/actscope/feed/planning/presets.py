"""Feeds of four sizes, and what is changed of them: a preset, then the environment, then the command line.

    test         the built-in model and text; up within a minute on two cores, without a network
    production   a mid-size model of the hub, its rows in bfloat16, a buffer of some tens of GB
    large-scale  a larger model at three sites, a buffer of most of the memory that the machine has
    env          nothing of its own: what the environment says

All are one program with other numbers: any setting of a preset can be changed, and any feed can be made without one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final, TypeVar

from actscope.errors import SettingsError
from actscope.feed.planning.environment import NAMES, Given, from_environment, parsed
from actscope.feed.planning.host_memory import Machine, this_machine
from actscope.feed.planning.memory_estimate import rows_of
from actscope.feed.settings import FeedSettings

_T = TypeVar("_T")
_BIG: Final = {
    "dataset": "HuggingFaceFW/fineweb-edu:sample-10BT",
    "dtype": "bfloat16",
    "context": 1024,
    "batch_tokens": 32_768,
}
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "test": {"buffer_rows": 1 << 16, "windows": 8, "chunk_texts": 64},
        "production": {**_BIG, "model": "Qwen/Qwen3-8B-Base", "buffer_rows": 4 << 20, "windows": 4},
        "large-scale": {
            **_BIG,
            "model": "Qwen/Qwen3-32B",
            "sites": "first,middle,last",
            "buffer_rows": "75%",
            "windows": 16,
        },
        "env": {},
    }
)


def feed_settings(
    preset: str = "",
    flags: Mapping[str, Any] | None = None,
    env: Mapping[str, str] = os.environ,
    machine: Callable[[], Machine] = this_machine,
) -> FeedSettings:
    """The settings that a preset ("" for none), the environment and flags give together; each goes before the ones it follows.

    Flags are named like the settings, values are theirs or texts; a flag of None says nothing. Raises SettingsError that names
    the preset, variable or flag to change.
    """
    given = {name: Given(value, f"the preset {preset}") for name, value in _preset(preset).items()}
    given |= from_environment(env, plain=preset == "env")
    given |= {name: _flag(name, value) for name, value in (flags or {}).items() if value is not None}
    rows = given.get("buffer_rows")
    if rows is None or not isinstance(rows.value, str):
        return _settings(given)
    least = _settings(given | {"buffer_rows": Given(1 << 40, rows.by)})
    return replace(least, buffer_rows=_telling(given, lambda: rows_of(rows.value, least, machine)))


def option(name: str) -> str:
    """What a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def _preset(name: str) -> Mapping[str, Any]:
    if name and name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"feed preset {name!r}: expected one of {', '.join(PRESETS)}{hint}")
    return PRESETS[name] if name else {}


def _flag(name: str, value: Any) -> Given:
    if name not in NAMES:
        raise SettingsError(f"feed {name}: no such setting; settings are {', '.join(NAMES)}")
    return Given(parsed(name, value, option(name)), option(name))


def _settings(given: Mapping[str, Given]) -> FeedSettings:
    return _telling(given, lambda: FeedSettings(**{name: one.value for name, one in given.items()}))


def _telling(given: Mapping[str, Given], make: Callable[[], _T]) -> _T:
    """What `make` gives; an error of its about a setting says who set it."""
    try:
        return make()
    except SettingsError as error:
        match = re.match(r"(?:feed )?(\w+)", str(error))
        source = given.get(match[1]) if match else None
        if source is None:
            raise
        raise SettingsError(f"{error} (set by {source.by})") from error
