"""Parsing of the feed's settings from text: command line options and environment variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_origin, get_type_hints

from actscope.errors import SettingsError
from actscope.feed.planning.memory_estimate import is_measured
from actscope.feed.settings import FeedSettings
from actscope.near_miss import hint
from actscope.sizes import parse_count

#: Prefix of a variable; the setting's name follows in capitals.
PREFIX = "ACTSCOPE_FEED_"
TOKEN = "ACTSCOPE_TOKEN"
#: Variables of other activation servers; read with the preset `env`.
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


@dataclass(frozen=True, slots=True)
class Given:
    """Value of one setting, and its source: a preset, a variable or an option."""

    value: Any
    by: str


def from_environment(env: Mapping[str, str], *, plain: bool) -> dict[str, Given]:
    """Return the settings that environment variables give. An empty variable counts as unset.

    Args:
        env: The environment. Read are ACTSCOPE_FEED_* and ACTSCOPE_TOKEN.
        plain: Whether to read the variables of PLAIN too; the others override them.

    Returns:
        The values that are set, by the name of the setting.

    Raises:
        SettingsError: A value cannot be parsed, or a name begins with ACTSCOPE_FEED_ and is not a setting. The message names
            the variable.
    """
    _refuse_unknown(env)
    names = {
        **(PLAIN if plain else {}),
        TOKEN: "token",
        **{_variable(name): name for name in NAMES},
    }
    return {
        name: Given(parsed(name, text, variable), variable) for variable, name in names.items() if (text := env.get(variable))
    }  # fmt: skip


def parsed(name: str, text: object, by: str) -> Any:
    """Parse the value of a setting to its type; a value that is not a str is returned as it is. Errors name the source `by`.

    A `buffer_rows` in bytes or as a share of memory stays text. Raises SettingsError for a value that cannot be parsed.
    """
    if not isinstance(text, str):
        return text
    if name == "buffer_rows" and is_measured(text.strip()):
        return text.strip()
    kind = _TYPES[name]
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return _READERS[kind](text, by) if kind in _READERS else text.strip()


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _refuse_unknown(env: Mapping[str, str]) -> None:
    known = {_variable(name) for name in NAMES}
    for variable in sorted(env):
        if variable.startswith(PREFIX) and variable not in known:
            near = hint(variable.removeprefix(PREFIX), NAMES, f"settings are {', '.join(NAMES)}", _variable)
            raise SettingsError(f"{variable}: the feed has no such setting{near}")


def _count(text: str, by: str) -> int:
    try:
        return parse_count(text)
    except SettingsError as error:
        raise SettingsError(f"{by} {error}") from error


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


_READERS: dict[Any, Callable[[str, str], Any]] = {int: _count, float: _number, bool: _switch}
