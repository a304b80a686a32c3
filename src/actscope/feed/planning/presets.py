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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final, TypeVar

from actscope.errors import SettingsError
from actscope.feed.planning.environment import NAMES, Given, from_environment, parsed
from actscope.feed.planning.host_memory import Machine, gigabytes, this_machine
from actscope.feed.planning.memory_estimate import Estimate, estimate, fits, rows_of, shape_of
from actscope.feed.settings import FeedSettings

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


def _preset(name: str) -> Mapping[str, object]:
    if name and name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"feed preset {name!r}: expected one of {', '.join(PRESETS)}{hint}")
    return PRESETS[name] if name else {}


def _flag(name: str, value: object) -> Given:
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


_HEADS = ("preset", "model", "a row", "rows", "mixed over", "buffer", "+ on a GPU", "+ on the CPU")


@dataclass(frozen=True, slots=True)
class PresetLine:
    """One preset. `beside_*_bytes` are what the generator takes besides the buffer; `buffer_rows` is 0 where none fits."""

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
        """As texts, in the order of the table's columns."""
        places = f"{self.sites} x " if self.sites > 1 else ""
        rows = (f"{self.buffer_rows:,}", f"{self.buffer_rows // self.windows:,}", gigabytes(self.buffer_bytes))
        beside = (gigabytes(self.beside_gpu_bytes), gigabytes(self.beside_cpu_bytes))
        row = f"{places}{self.width} {self.dtype}"
        return (self.preset, self.model, row, *(rows if self.buffer_rows else ("none", "-", "-")), *beside)


def overview(
    machine: Machine, flags: Mapping[str, object] | None = None, env: Mapping[str, str] = os.environ
) -> list[PresetLine]:
    """Every preset on this machine, with what the environment and the flags change of it."""
    return [_line(name, machine, flags or {}, env) for name in PRESETS]


def as_text(lines: Sequence[PresetLine]) -> str:
    """For a terminal: columns, and whether it fits here."""
    rows = [(*_HEADS, "fits"), *((*line.cells(), "yes" if line.fits else "no") for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_markdown(lines: Sequence[PresetLine]) -> str:
    """For the documentation."""
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
    """The settings, and False where a buffer that is a share of memory has no room at all."""
    try:
        return feed_settings(name, flags, env, lambda: machine), True
    except SettingsError:
        settings = feed_settings(name, {**flags, "buffer_rows": 1 << 10}, env, lambda: machine)
        return replace(settings, buffer_rows=settings.windows), False
