"""Checks of `actscope feed --check`: whether a feed with these settings could start here. They take seconds and load no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from actscope.cli.common.findings import Finding
from actscope.cli.feed.dataset_preview import beginning, first_text, is_of_hub
from actscope.errors import ActscopeError, MissingExtra, SettingsError
from actscope.extraction.contract import Texts
from actscope.extraction.texts import BUILTIN, open_texts
from actscope.extras import SERVER, missing, require
from actscope.feed.buffer.layout import Layout
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.planning.host_memory import gigabytes, has_gpu, this_machine
from actscope.feed.planning.memory_estimate import Estimate, check_fits, estimate, shape_of
from actscope.feed.planning.model_facts import facts_of
from actscope.feed.settings import FeedSettings

_NEEDED = ("torch", "transformers", *SERVER)
#: Layout of the buffer that is mapped without `--full`.
_SMALL = Layout(2, 1024, 1, 256, "float32")


def check(settings: FeedSettings, *, whole: bool = False) -> Iterator[Finding]:
    """Yield the findings as they are made. With `whole`, the buffer is mapped at its full size, and freed again."""
    yield _packages(settings)
    yield _settings(settings)
    yield _of("start", lambda: _start(settings), "--resume, --state, --seed")
    yield _of("runtime folder", _runtime, "set ACTSCOPE_RUNTIME_DIR to a private directory")
    yield _of("dataset", lambda: _dataset(settings), "--dataset, --split, --column")
    yield _of("model", lambda: _model(settings), "--model; or --width, if the hub cannot be reached")
    yield _device(settings)
    yield from _shape(settings, whole=whole)
    yield _of("port", lambda: _port(settings), "--port, --host")


def _of(what: str, find: Callable[[], str], remedy: str) -> Finding:
    """Return what `find` returns as a finding. An `ActscopeError` makes it a NO."""
    try:
        return Finding(what, True, find())
    except ActscopeError as error:
        return Finding(what, False, str(error), str(error) if isinstance(error, MissingExtra) else remedy)


def _packages(settings: FeedSettings) -> Finding:
    needed = (*_NEEDED, *(("datasets",) if _is_table(settings) else ()))
    absent = missing(*needed)
    if absent:
        return Finding("packages", False, f"missing {', '.join(absent)}", "pip install 'actscope[feed]'")
    if settings.engine == "vllm" and missing("vllm"):
        return Finding("packages", False, "vllm is not installed", "pip install vllm, or --engine hf")
    return Finding("packages", True, ", ".join(needed))


def _settings(settings: FeedSettings) -> Finding:
    order = f"shuffled, seed {settings.seed}" if settings.shuffle else "in the order of the dataset"
    epochs = f"{settings.epochs} epochs" if settings.epochs else "no limit on epochs"
    serves = "once" if settings.serves == 1 else f"{settings.serves} times"
    found = f"{settings.buffer_rows:,} rows in {settings.windows} windows, {order}, {epochs}, each row served {serves} per group"
    return Finding("settings", True, found)


def _start(settings: FeedSettings) -> str:
    from actscope.feed.buffer.position import Position
    from actscope.feed.server.service import Service

    Service(settings)  # reads the position and the state file; starts no process
    if settings.state and not os.access(Path(settings.state).parent, os.W_OK):
        raise SettingsError(f"feed state {settings.state}: its directory cannot be written to")
    if settings.resume:
        return f"at {Position.parse(settings.resume)}"
    return (
        f"at the position in {settings.state}"
        if settings.state and Path(settings.state).exists()
        else "at the beginning"
    )


def _runtime() -> str:
    from actscope.runtime.directory import runtime_dir

    return str(runtime_dir())


def _is_table(settings: FeedSettings) -> bool:
    return settings.dataset.partition(":")[0] != BUILTIN


def _dataset(settings: FeedSettings) -> str:
    if _is_table(settings) and is_of_hub(settings.dataset):
        return first_text(settings)
    texts: Texts = open_texts(settings.dataset, split=settings.split, column=settings.column, n=settings.texts or None)
    return f"{settings.dataset}: {len(texts):,} texts; the first begins {beginning(texts.read([0])[0])}"


def _model(settings: FeedSettings) -> str:
    facts = facts_of(settings.model)
    numbers = f"{facts.parameters / 1e6:,.1f} M parameters" if facts.parameters else "unknown size of the weights"
    return f"{settings.model}: {facts.n_layers} blocks, width {facts.width}, {numbers} ({facts.source})"


def _device(settings: FeedSettings) -> Finding:
    if settings.device.startswith("cuda") and not has_gpu():
        return Finding("device", False, f"{settings.device}: no GPU driver found on this machine", "--device cpu")
    if settings.device == "auto":
        return Finding("device", True, "a GPU, if torch also finds it" if has_gpu() else "the CPU: no GPU driver found")
    return Finding("device", True, settings.device)


def _shape(settings: FeedSettings, *, whole: bool) -> Iterator[Finding]:
    try:
        shape = shape_of(settings)
    except ActscopeError as error:
        yield Finding("sites", False, str(error), "--sites, --width, --context")
        return
    names = ", ".join(shape.sites[:4]) + (" …" if len(shape.sites) > 4 else "")
    unknown = f"; not known until the model is loaded: {shape.unknown}" if shape.unknown else ""
    yield Finding("sites", True, f"{shape.n_sites} x {shape.width} {settings.dtype}: {names}{unknown}")
    estimated = estimate(settings, shape)
    yield (memory := _memory(estimated))
    if memory.ok or not whole:
        yield _of("shared memory", lambda: _mapped(settings, estimated.layout if whole else _SMALL), "--buffer-rows")


def _memory(estimated: Estimate) -> Finding:
    try:
        machine = this_machine()
        check_fits(estimated, machine)
    except SettingsError as error:
        said, *more = str(error).splitlines()
        return Finding("memory", False, "\n".join([said, *more[:-1]]), more[-1] if more else "")
    found = f"needs {gigabytes(estimated.total_bytes)}; free: {machine.why}"
    return Finding("memory", True, "\n".join([found, *(f"    {line}" for line in estimated.lines())]))


def _mapped(settings: FeedSettings, layout: Layout) -> str:
    """Map the buffer, write to its first and last bytes, and read them back through a second mapping."""
    with (
        closing(FeedMemory.create(layout, huge_pages=settings.huge_pages, numa=settings.numa)) as ours,
        closing(FeedMemory.attach(os.dup(ours.fd), layout)) as theirs,
    ):
        last = layout.total_bytes - 1
        ours.generations[0], ours.bytes[last] = 7, 42
        if (theirs.generations[0], theirs.bytes[last]) != (7, 42):
            raise SettingsError("feed buffer: bytes written through one mapping are not visible in another")
    asked = settings.huge_pages and this_machine().huge_pages in ("never", "deny", "")
    huge = "; huge pages: this kernel does not provide them for shared memory" if asked else ""
    return f"{gigabytes(layout.total_bytes)} mapped twice; a write is visible in both mappings{huge}"


def _port(settings: FeedSettings) -> str:
    require("feed", *SERVER)
    from actscope.serving.listening import listen

    with listen(settings) as sock:
        taken = replace(settings, port=sock.getsockname()[1])
    return f"{taken.url} is free" if settings.port else "a free port will be chosen"
