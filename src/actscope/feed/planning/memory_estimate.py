"""How much memory a feed takes, told before it is taken, and refused with the arithmetic where there is not so much.

buffer     rows, their labels, the head: exact, for it is what will be mapped (`Layout`)
generator  the model's weights, one pass, one chunk's rows, two processes: estimated, and rather too much than too little
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from actscope.errors import SettingsError, SiteError
from actscope.extraction.contract import ROW_LABEL
from actscope.extraction.texts import BUILTIN
from actscope.feed.buffer.layout import PAGE, Layout
from actscope.feed.planning.host_memory import Machine, gigabytes, has_gpu
from actscope.feed.planning.model_facts import ModelFacts, Unreachable, facts_of
from actscope.feed.settings import ITEM_BYTES, FeedSettings
from actscope.sites import is_named, items_of, select

#: The server has 0.1 GB, a generator 0.45 GB with torch and transformers, some GB with CUDA (measured: resident memory).
_PROCESSES = {"cpu": 600 << 20, "gpu": 4 << 30}
#: Float32 rows of the model's width that a pass on the CPU holds for each token (measured on the built-in model, rounded up).
_ROWS_OF_A_PASS = 32
#: Texts of people's datasets are longer than the context more often than not; the built-in ones never are.
_TOKENS_OF_A_TEXT = 1024
#: Share of what is free that is never asked for.
_SPARE = 0.05
#: More blocks than any model has: what a selection names in it, it names in a model of unknown depth.
_MANY_BLOCKS = 10_000
_ROW_STEP = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """What one position gives: `n_sites` rows of `width`. `unknown` says what could not be found out, "" for nothing."""

    width: int
    n_sites: int
    sites: tuple[str, ...]
    model: ModelFacts | None
    unknown: str = ""


def shape_of(settings: FeedSettings) -> Shape:
    """The shape of rows, from the model's config alone. Modules named by their paths count as one site each.

    Raises SettingsError where the config and the settings do not go together, and where nothing is known of the model: it is out
    of reach, and `width` does not say. Raises SiteError for a block that it does not have.
    """
    try:
        facts = facts_of(settings.model)
    except Unreachable as error:
        return _unread_shape(settings, error)
    if settings.width and settings.width != facts.width:
        raise SettingsError(f"feed width: expected {settings.width}, but rows of {settings.model} have {facts.width}")
    if facts.context and settings.context > facts.context:
        raise SettingsError(
            f"feed context {settings.context}: {settings.model} reads at most {facts.context} tokens at once"
        )
    named, modules = _sites(settings.sites, facts.n_layers)
    unknown = f"which modules {', '.join(modules)} are, and how wide" if modules else ""
    return Shape(facts.width, len(named) + len(modules), (*named, *modules), facts, unknown)


def _unread_shape(settings: FeedSettings, error: Unreachable) -> Shape:
    if not settings.width:
        raise SettingsError(
            f"{error}; its width is not known: say it with width (--width), or fetch the model first (hf download "
            f"{settings.model})"
        ) from error
    named, modules = _sites(settings.sites, _MANY_BLOCKS)
    if len(named) >= _MANY_BLOCKS:
        raise SettingsError(
            f"{error}; so how many blocks it has is not known: name sites by number, not {settings.sites!r}"
        )
    unknown = f"how many blocks {settings.model} has, and how large its weights are"
    return Shape(settings.width, len(named) + len(modules), (settings.sites,), None, unknown)


def _sites(selection: str, n_layers: int) -> tuple[list[str], list[str]]:
    """Names of sites, and paths of modules, which only the model itself can resolve."""
    items = items_of(selection)
    named = [item for item in items if is_named(item)]
    try:
        sites = select(",".join(named), n_layers) if named else ()
    except SiteError as error:
        raise SiteError(f"feed sites: {error}") from error
    return [str(site) for site in sites], [item for item in items if not is_named(item)]


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the arithmetic. `bytes` is None where it is not known."""

    what: str
    how: str
    bytes: int | None

    def __str__(self) -> str:
        return f"{self.what:<10} {self.how:<58} {'not known' if self.bytes is None else gigabytes(self.bytes):>9}"


@dataclass(frozen=True)
class Estimate:
    """The memory of a feed with these settings, in bytes."""

    settings: FeedSettings
    shape: Shape
    on_gpu: bool = False

    @cached_property
    def layout(self) -> Layout:
        """The buffer, as it will be mapped."""
        s = self.settings
        return Layout(s.windows, s.window_rows, self.shape.n_sites, self.shape.width, s.dtype)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part, with the arithmetic in words."""
        return (*self._buffer(), *self._generator())

    @property
    def buffer_bytes(self) -> int:
        """What is mapped at the start."""
        return self.layout.total_bytes

    @property
    def generator_bytes(self) -> int:
        """Everything else, as far as it is known."""
        return sum(part.bytes or 0 for part in self._generator())

    @property
    def total_bytes(self) -> int:
        return self.buffer_bytes + self.generator_bytes

    @property
    def bytes_a_row(self) -> int:
        """What one more row costs: its values at every site, and its label."""
        return self.shape.n_sites * self.layout.row_bytes + ROW_LABEL.itemsize

    def lines(self) -> list[str]:
        """The arithmetic, and its sum."""
        return [*map(str, self.parts), str(Part("total", "", self.total_bytes))]

    def most_rows(self, machine: Machine, share: float = 1.0) -> int:
        """The largest buffer that fits into this share of what is left beside the generator; 0 where there is none."""
        left = int((machine.free * (1 - _SPARE) - self.generator_bytes) * share)
        slack = PAGE * (1 + self.settings.windows * (1 + self.shape.n_sites))
        rows = max(0, left - slack) // self.bytes_a_row
        step = self.settings.windows * _ROW_STEP
        return rows // step * step if rows > step else rows

    def _buffer(self) -> tuple[Part, ...]:
        rows, layout = self.settings.windows * self.settings.window_rows, self.layout
        values = f"{rows:,} rows x {self.shape.n_sites} site(s) x {layout.width} x {ITEM_BYTES[layout.dtype]} bytes"
        return (
            Part("rows", values, layout.n_windows * self.shape.n_sites * layout.plane_bytes),
            Part("labels", f"{rows:,} rows x {ROW_LABEL.itemsize} bytes", layout.n_windows * layout.label_bytes),
            Part("head", "", PAGE),
        )

    def _generator(self) -> tuple[Part, ...]:
        where = "gpu" if self.on_gpu else "cpu"
        return (
            self._weights(),
            self._pass(),
            self._chunk(),
            Part("processes", "server and generator", _PROCESSES[where]),
        )

    def _weights(self) -> Part:
        model = self.shape.model
        if model is None or not model.parameters:
            return Part("weights", f"{self.settings.model}: how many there are is not known", None)
        dtype = model.dtype if self.on_gpu else "float32"  # what `load` takes where nothing is said
        when = ", while it is loaded" if self.on_gpu else ""
        how = f"{model.parameters:,} parameters x {ITEM_BYTES[dtype]} bytes{when}"
        return Part("weights", how, model.parameters * ITEM_BYTES[dtype])

    def _pass(self) -> Part:
        if self.on_gpu:
            return Part("pass", "on the GPU", 0)
        how = f"{self.settings.batch_tokens:,} tokens x {_ROWS_OF_A_PASS} x {self.shape.width} x 4 bytes"
        return Part("pass", how, self.settings.batch_tokens * _ROWS_OF_A_PASS * self.shape.width * 4)

    def _chunk(self) -> Part:
        s, width, sites = self.settings, self.shape.width, self.shape.n_sites
        tokens = s.context if s.dataset.partition(":")[0] == BUILTIN else max(s.context, _TOKENS_OF_A_TEXT)
        how = f"{s.chunk_texts} texts x {tokens} tokens x {width} x {sites} x {s.item_bytes} bytes"
        return Part("chunk", how, s.chunk_texts * tokens * width * sites * s.item_bytes)


def estimate(settings: FeedSettings, shape: Shape | None = None) -> Estimate:
    """The memory that these settings take, with the model on the device that they name, or that there is."""
    on_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and has_gpu())
    return Estimate(settings, shape or shape_of(settings), on_gpu)


def fits(estimated: Estimate, machine: Machine) -> bool:
    """Whether the machine has so much, and a little more."""
    return estimated.total_bytes <= machine.free * (1 - _SPARE)


def check_fits(estimated: Estimate, machine: Machine) -> None:
    """Raises SettingsError, with the arithmetic and what to change, when the machine does not have so much."""
    if fits(estimated, machine):
        return
    raise SettingsError(
        f"feed memory: needs {gigabytes(estimated.total_bytes)}, and {gigabytes(machine.free)} are free here, "
        f"of which {_SPARE:.0%} are left alone\n"
        + "".join(f"    {line}\n" for line in estimated.lines())
        + f"    {Part('free', machine.why, machine.free)!s}\n{_advice(estimated, machine)}"
    )


def _advice(estimated: Estimate, machine: Machine) -> str:
    rows = estimated.most_rows(machine)
    if rows < estimated.settings.windows:
        elsewhere = "a machine with more memory" if estimated.on_gpu else "a GPU for it, or a machine with more memory"
        return f"no buffer fits beside this model: take a smaller one, fewer batch_tokens, {elsewhere}"
    smaller = [] if estimated.settings.item_bytes == 2 else ["dtype bfloat16 (half the bytes)"]
    fewer = ["fewer sites"] if estimated.shape.n_sites > 1 else []
    return f"what fits: at most buffer_rows {rows} (--buffer-rows {rows})" + "".join(
        f", or {other}" for other in (*smaller, *fewer)
    )


_ROWS = re.compile(r"(?:(?P<share>\d+(?:\.\d+)?)\s*%|(?P<size>\d+(?:\.\d+)?)\s*(?P<unit>[kMGT]i?)B)")
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def is_measured(text: str) -> bool:
    """Whether a size of the buffer is given as a share of memory (70%) or in bytes (300GB), rather than in rows."""
    return _ROWS.fullmatch(text) is not None


def rows_of(text: str, settings: FeedSettings, machine: Callable[[], Machine]) -> int:
    """Rows of a buffer of this size: `70%` of the memory that is left beside the generator, or `300GB`.

    Raises SettingsError where that is not a single row a window.
    """
    match = _ROWS.fullmatch(text)
    if match is None:
        raise SettingsError(f"feed buffer_rows {text!r}: expected rows (1M, 64k), a size (300GB) or a share (70%)")
    estimated = estimate(replace(settings, buffer_rows=settings.windows))
    if match["size"]:
        rows = int(float(match["size"]) * _UNITS[match["unit"]]) // estimated.bytes_a_row
    else:
        rows = estimated.most_rows(machine(), _share(text, float(match["share"])))
    if rows < settings.windows:
        check_fits(estimated, machine())
        raise SettingsError(f"feed buffer_rows {text!r}: not one row for each of {settings.windows} windows")
    return rows


def _share(text: str, percent: float) -> float:
    if not 0 < percent <= 100:
        raise SettingsError(f"feed buffer_rows {text!r}: expected a share above 0 % and at most 100 %")
    return percent / 100
