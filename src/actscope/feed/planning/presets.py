"""Presets of the feed's settings. Environment variables override a preset, and command line options override both.

    test         the built-in model and text; serves within a minute on two cores, without a network
    production   a mid-size hub model, rows in bfloat16, a buffer of some tens of GB
    large-scale  a larger model at three sites, a buffer of most of the machine's memory
    env          no settings of its own; reads the plain environment variables

A preset is nothing but settings: each of them can be overridden, and every feed can be configured without a preset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeVar

from actscope.errors import SettingsError
from actscope.feed.planning.environment import NAMES, Given, from_environment, parsed
from actscope.feed.planning.host_memory import Machine, gigabytes, this_machine
from actscope.feed.planning.memory_estimate import Estimate, estimate, fits, rows_of, shape_of
from actscope.feed.settings import FeedSettings
from actscope.near_miss import hint

_T = TypeVar("_T")
_BIG: Final = {
    "dataset": "HuggingFaceFW/fineweb-edu:sample-10BT",
    "dtype": "bfloat16",
    "context": 1024,
    "batch_tokens": 32_768,
}
PRESETS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
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
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] = os.environ,
    machine: Callable[[], Machine] = this_machine,
) -> FeedSettings:
    """Return the settings that a preset, the environment and options give together. Each overrides the ones before it.

    Args:
        preset: Name of the preset; "" for none.
        flags: Options by the name of the setting, as values or as text. None counts as unset.
        env: The environment.
        machine: Returns the machine's memory. It is called if `buffer_rows` is a share of memory, or does not fit.

    Raises:
        SettingsError: A value is invalid. The message names the preset, variable or option to change.
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
    """Return the command line option of a setting."""
    return f"--{name.replace('_', '-')}"


def _preset(name: str) -> Mapping[str, object]:
    if name and name not in PRESETS:
        raise SettingsError(f"feed preset {name!r}: expected one of {', '.join(PRESETS)}{hint(name, PRESETS)}")
    return PRESETS[name] if name else {}


def _flag(name: str, value: object) -> Given:
    if name not in NAMES:
        raise SettingsError(f"feed {name}: no such setting{hint(name, NAMES, 'settings are ' + ', '.join(NAMES))}")
    return Given(parsed(name, value, option(name)), option(name))


def _settings(given: Mapping[str, Given]) -> FeedSettings:
    return _telling(given, lambda: FeedSettings(**{name: one.value for name, one in given.items()}))


def _telling(given: Mapping[str, Given], make: Callable[[], _T]) -> _T:
    """Return `make()`. Add the source of the setting to a SettingsError that names one."""
    try:
        return make()
    except SettingsError as error:
        match = re.match(r"(?:feed )?(\w+)", str(error))
        source = given.get(match[1]) if match else None
        if source is None:
            raise
        raise SettingsError(f"{error} (set by {source.by})") from error


_HEADS = ("preset", "model", "a row", "rows", "mixed over", "buffer", "+ on a GPU", "+ on the CPU")


@dataclass(frozen=True, slots=True)
class PresetLine:
    """One preset on one machine.

    `beside_gpu_bytes` and `beside_cpu_bytes` are the generator's memory beside the buffer, with the model on a GPU or on the CPU.
    `buffer_rows` is 0 if no buffer fits.
    """

    preset: str
    model: str
    dataset: str
    sites: int
    width: int
    dtype: str
    buffer_rows: int
    windows: int
    buffer_bytes: int
    beside_gpu_bytes: int
    beside_cpu_bytes: int
    fits: bool

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table, in the order of its columns."""
        places = f"{self.sites} x " if self.sites > 1 else ""
        rows = (f"{self.buffer_rows:,}", f"{self.buffer_rows // self.windows:,}", gigabytes(self.buffer_bytes))
        beside = (gigabytes(self.beside_gpu_bytes), gigabytes(self.beside_cpu_bytes))
        row = f"{places}{self.width} {self.dtype}"
        return (self.preset, self.model, row, *(rows if self.buffer_rows else ("none", "-", "-")), *beside)


def overview(
    machine: Machine, flags: Mapping[str, object] | None = None, env: Mapping[str, str] = os.environ
) -> list[PresetLine]:
    """Return every preset on this machine, with the environment and the options applied."""
    return [_line(name, machine, flags or {}, env) for name in PRESETS]


def as_text(lines: Sequence[PresetLine]) -> str:
    """Format the table for a terminal, with a column that says whether the feed fits here."""
    rows = [(*_HEADS, "fits"), *((*line.cells(), "yes" if line.fits else "no") for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_markdown(lines: Sequence[PresetLine]) -> str:
    """Format the table for the documentation."""
    body = ["| " + " | ".join(("`" + cells[0] + "`", *cells[1:])) + " |" for line in lines if (cells := line.cells())]
    return "\n".join(["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS), *body])


def _line(name: str, machine: Machine, flags: Mapping[str, object], env: Mapping[str, str]) -> PresetLine:
    settings, has_room = _settings_or_too_small(name, machine, flags, env)
    shape = shape_of(settings)
    on_gpu, on_cpu = Estimate(settings, shape, True), Estimate(settings, shape, False)
    return PresetLine(
        preset=name,
        model=settings.model,
        dataset=settings.dataset,
        sites=shape.n_sites,
        width=shape.width,
        dtype=settings.dtype,
        buffer_rows=settings.buffer_rows if has_room else 0,
        windows=settings.windows,
        buffer_bytes=on_cpu.buffer_bytes if has_room else 0,
        beside_gpu_bytes=on_gpu.generator_bytes,
        beside_cpu_bytes=on_cpu.generator_bytes,
        fits=has_room and fits(estimate(settings, shape), machine),
    )


def _settings_or_too_small(
    name: str, machine: Machine, flags: Mapping[str, object], env: Mapping[str, str]
) -> tuple[FeedSettings, bool]:
    """Return the settings, and whether the buffer has any room. If it has none, `buffer_rows` is one row for each window."""
    try:
        return feed_settings(name, flags, env, lambda: machine), True
    except SettingsError:
        settings = feed_settings(name, {**flags, "buffer_rows": 1 << 10}, env, lambda: machine)
        return replace(settings, buffer_rows=settings.windows), False
