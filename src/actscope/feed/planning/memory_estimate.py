"""Estimate of a feed's memory before it starts. A feed that does not fit is refused, and the error shows the arithmetic.

buffer     rows, labels and head: exact, because this is what will be mapped (`Layout`)
generator  the model's weights, one pass, the rows of one chunk, two processes: estimated, erring on the high side
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

#: Bytes of the two processes: the server takes 0.1 GB, a generator 0.45 GB with torch and transformers, some GB with CUDA
#: (measured: resident memory).
_PROCESSES = {"cpu": 600 << 20, "gpu": 4 << 30}
#: Float32 rows of the model's width that a pass on the CPU holds per token (measured on the built-in model, rounded up).
_ROWS_OF_A_PASS = 32
#: Tokens assumed for a text. Texts of users' datasets are mostly longer than the context; the built-in ones never are.
_TOKENS_OF_A_TEXT = 1024
#: Share of the free memory that is left unused.
_SPARE = 0.05
#: More blocks than any model has: stands for the depth of a model whose depth is unknown.
_MANY_BLOCKS = 10_000
_ROW_STEP = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of the rows of one position.

    Attributes:
        width: Width of a row.
        n_sites: Number of rows, one for each site.
        sites: Names of the sites, and paths of modules. If the model is out of reach, the selection as it was given.
        model: Facts of the model; None if it is out of reach.
        unknown: The facts that could not be determined, in words; "" if there are none.
    """

    width: int
    n_sites: int
    sites: tuple[str, ...]
    model: ModelFacts | None
    unknown: str = ""


def shape_of(settings: FeedSettings) -> Shape:
    """Determine the shape of the rows from the model's config alone. A module given by its path counts as one site.

    Args:
        settings: Settings of the feed.

    Returns:
        The shape. If the model is out of reach, it follows from `width` and `sites`.

    Raises:
        SettingsError: The settings do not fit the model's config. Or the model is out of reach, and `width` is not set or
            `sites` depends on the number of blocks.
        SiteError: The model does not have a block that `sites` names.
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
            f"{error}; its width is not known: set width (--width), or download the model first (hf download "
            f"{settings.model})"
        ) from error
    named, modules = _sites(settings.sites, _MANY_BLOCKS)
    if len(named) >= _MANY_BLOCKS:
        raise SettingsError(f"{error}; its number of blocks is not known: name sites by number, not {settings.sites!r}")
    unknown = f"how many blocks {settings.model} has, and how large its weights are"
    return Shape(settings.width, len(named) + len(modules), (settings.sites,), None, unknown)


def _sites(selection: str, n_layers: int) -> tuple[list[str], list[str]]:
    """Return the names of the sites, and the paths of modules, which only the loaded model can resolve."""
    items = items_of(selection)
    named = [item for item in items if is_named(item)]
    try:
        sites = select(",".join(named), n_layers) if named else ()
    except SiteError as error:
        raise SiteError(f"feed sites: {error}") from error
    return [str(site) for site in sites], [item for item in items if not is_named(item)]


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the arithmetic: a name, the calculation in words, and the result in bytes (None if it is not known)."""

    what: str
    how: str
    bytes: int | None

    def __str__(self) -> str:
        return f"{self.what:<10} {self.how:<58} {'not known' if self.bytes is None else gigabytes(self.bytes):>9}"


@dataclass(frozen=True)
class Estimate:
    """Estimated memory of a feed with these settings, in bytes."""

    settings: FeedSettings
    shape: Shape
    on_gpu: bool = False

    @cached_property
    def layout(self) -> Layout:
        """Layout of the buffer, as it will be mapped."""
        s = self.settings
        return Layout(s.windows, s.window_rows, self.shape.n_sites, self.shape.width, s.dtype)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts of the buffer and of the generator."""
        return (*self._buffer(), *self._generator())

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffer, which is mapped at the start."""
        return self.layout.total_bytes

    @property
    def generator_bytes(self) -> int:
        """Bytes of everything else, as far as known."""
        return sum(part.bytes or 0 for part in self._generator())

    @property
    def total_bytes(self) -> int:
        """Return the bytes of the buffer and the generator together."""
        return self.buffer_bytes + self.generator_bytes

    @property
    def bytes_a_row(self) -> int:
        """Bytes of one row: its values at all sites, and its label."""
        return self.shape.n_sites * self.layout.row_bytes + ROW_LABEL.itemsize

    def lines(self) -> list[str]:
        """Return the arithmetic as lines of text, with the total."""
        return [*map(str, self.parts), str(Part("total", "", self.total_bytes))]

    def most_rows(self, machine: Machine, share: float = 1.0) -> int:
        """Return the rows of the largest buffer in `share` of the memory that the generator leaves free; 0 if none fits."""
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
            return Part("weights", f"{self.settings.model}: number of parameters unknown", None)
        dtype = model.dtype if self.on_gpu else "float32"  # the default of `load`
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
    """Estimate the memory of a feed. Device "auto" counts as a GPU if the machine has a GPU driver."""
    on_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and has_gpu())
    return Estimate(settings, shape or shape_of(settings), on_gpu)


def fits(estimated: Estimate, machine: Machine) -> bool:
    """Return whether the feed fits into 95 % of the machine's free memory."""
    return estimated.total_bytes <= machine.free * (1 - _SPARE)


def check_fits(estimated: Estimate, machine: Machine) -> None:
    """Raise SettingsError, with the arithmetic and the settings to change, unless the feed fits on the machine."""
    if fits(estimated, machine):
        return
    raise SettingsError(
        f"feed memory: needs {gigabytes(estimated.total_bytes)}, but {gigabytes(machine.free)} are free here, "
        f"of which {_SPARE:.0%} are left unused\n"
        + "".join(f"    {line}\n" for line in estimated.lines())
        + f"    {Part('free', machine.why, machine.free)!s}\n{_advice(estimated, machine)}"
    )


def _advice(estimated: Estimate, machine: Machine) -> str:
    rows = estimated.most_rows(machine)
    if rows < estimated.settings.windows:
        elsewhere = "a machine with more memory" if estimated.on_gpu else "a GPU for it, or a machine with more memory"
        return f"no buffer fits beside this model: use a smaller model, fewer batch_tokens, {elsewhere}"
    smaller = [] if estimated.settings.item_bytes == 2 else ["dtype bfloat16 (half the bytes)"]
    fewer = ["fewer sites"] if estimated.shape.n_sites > 1 else []
    return f"what fits: at most buffer_rows {rows} (--buffer-rows {rows})" + "".join(
        f", or {other}" for other in (*smaller, *fewer)
    )


_ROWS = re.compile(r"(?:(?P<share>\d+(?:\.\d+)?)\s*%|(?P<size>\d+(?:\.\d+)?)\s*(?P<unit>[kMGT]i?)B)")
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def is_measured(text: str) -> bool:
    """Return whether a size of the buffer is given as a share of memory (70%) or in bytes (300GB), not in rows."""
    return _ROWS.fullmatch(text) is not None


def rows_of(text: str, settings: FeedSettings, machine: Callable[[], Machine]) -> int:
    """Return the number of rows of a buffer of a given size.

    Args:
        text: Share of the memory that the generator leaves free (`70%`), or a size of rows and labels (`300GB`).
        settings: Settings of the feed, apart from `buffer_rows`.
        machine: Returns the machine's memory; called if it is needed.

    Returns:
        Number of rows, at least one for each window.

    Raises:
        SettingsError: `text` is malformed, or the size is less than one row for each window.
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
        raise SettingsError(f"feed buffer_rows {text!r}: not one row for each of the {settings.windows} windows")
    return rows


def _share(text: str, percent: float) -> float:
    if not 0 < percent <= 100:
        raise SettingsError(f"feed buffer_rows {text!r}: expected a share above 0 % and at most 100 %")
    return percent / 100
