"""Settings of the feed out of texts: from the command line, and from variables of the environment."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from actscope.errors import SettingsError
from actscope.feed.planning.memory_estimate import is_measured
from actscope.feed.settings import FeedSettings

#: Before the name of any setting, in capitals.
PREFIX = "ACTSCOPE_FEED_"
TOKEN = "ACTSCOPE_TOKEN"
#: Variables that other activation servers go by; understood with the preset `env`.
PLAIN = {
    "BUFFER_SIZE": "buffer_rows",
    "ACTIVATION_DIM": "width",
    "MODEL_NAME": "model",
    "DATASET_NAME": "dataset",
    "HOST": "host",
    "PORT": "port",
}
NAMES = tuple(field.name for field in fields(FeedSettings))
_TYPES = get_type_hints(FeedSettings)
_WORDS = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
_COUNT = re.compile(r"(-?\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([kKMGT]i?)?", re.ASCII)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True, slots=True)
class Given:
    """The value of one setting, and who gave it: a preset, a variable, a flag."""

    value: Any
    by: str


def from_environment(env: Mapping[str, str], *, plain: bool) -> dict[str, Given]:
    """What ACTSCOPE_FEED_* and ACTSCOPE_TOKEN say, and with `plain` the variables of PLAIN, which give way to those.

    An empty variable says nothing. Raises SettingsError that names the variable for a value that cannot be read, and for a
    name that begins with ACTSCOPE_FEED_ and is no setting.
    """
    _refuse_unknown(env)
    names = {
        **(PLAIN if plain else {}),
        TOKEN: "token",
        **{f"{PREFIX}{name.upper()}": name for name in NAMES},
    }
    return {
        name: Given(parsed(name, text, variable), variable) for variable, name in names.items() if (text := env.get(variable))
    }  # fmt: skip


def parsed(name: str, text: object, by: str) -> Any:
    """The value of a setting as its type wants it; what is no text is taken as it is. Raises SettingsError that names `by`."""
    if not isinstance(text, str):
        return text
    if name == "buffer_rows" and is_measured(text.strip()):
        return text.strip()
    kind = _TYPES[name]
    return _READERS.get(kind, _list)(text, by)


def _refuse_unknown(env: Mapping[str, str]) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in NAMES}
    for variable in sorted(env):
        if variable.startswith(PREFIX) and variable not in known:
            near = get_close_matches(variable, sorted(known), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"settings are {', '.join(NAMES)}"
            raise SettingsError(f"{variable}: the feed has no such setting; {hint}")


def _count(text: str, by: str) -> int:
    match = _COUNT.fullmatch(text.strip())
    value = float(match[1]) * _UNITS[(match[2] or "").upper()] if match else 0.5
    if value != int(value):
        raise SettingsError(f"{by} {text!r}: expected a whole number, such as 4096, 64k, 1M or 2e6")
    return int(value)


def _number(text: str, by: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"{by} {text!r}: expected a number")
    return value


def _switch(text: str, by: str) -> bool:
    value = _WORDS.get(text.strip().lower())
    if value is None:
        raise SettingsError(f"{by} {text!r}: expected one of {', '.join(_WORDS)}")
    return value


def _list(text: str, by: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_READERS: dict[Any, Callable[[str, str], Any]] = {
    int: _count, float: _number, bool: _switch, str: lambda text, by: text.strip(),
}  # fmt: skip
