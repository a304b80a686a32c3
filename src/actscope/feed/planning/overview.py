"""The presets beside each other, with the memory that each takes: computed from the settings, never typed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actscope.errors import SettingsError
from actscope.feed.planning.host_memory import Machine, gigabytes
from actscope.feed.planning.memory_estimate import Estimate, estimate, fits, shape_of
from actscope.feed.planning.presets import PRESETS, feed_settings
from actscope.feed.settings import FeedSettings

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
    machine: Machine, flags: Mapping[str, Any] | None = None, env: Mapping[str, str] = os.environ
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


def _line(name: str, machine: Machine, flags: Mapping[str, Any], env: Mapping[str, str]) -> PresetLine:
    settings, has_room = _settings(name, machine, flags, env)
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


def _settings(
    name: str, machine: Machine, flags: Mapping[str, Any], env: Mapping[str, str]
) -> tuple[FeedSettings, bool]:
    """The settings, and False where a buffer that is a share of memory has no room at all."""
    try:
        return feed_settings(name, flags, env, lambda: machine), True
    except SettingsError:
        settings = feed_settings(name, {**flags, "buffer_rows": 1 << 10}, env, lambda: machine)
        return replace(settings, buffer_rows=settings.windows), False
