"""Main loop of the generator: loads dataset and model, then fills the windows that the server orders."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import msgspec

from actscope.extraction.contract import Reader
from actscope.extraction.cutting import Cutter, tokenizer_of
from actscope.extraction.opening import open_reader
from actscope.extraction.stream import TextStream
from actscope.extraction.texts import open_texts
from actscope.feed.buffer.layout import Layout
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.generator.filling import Filler
from actscope.feed.generator.link import ServerLink
from actscope.feed.messages import FromGenerator, Loaded, Loading, Progress
from actscope.feed.settings import FeedSettings

_TELL_S = 0.2

Tell = Callable[[FromGenerator], None]


def run(server: ServerLink, settings: FeedSettings) -> None:
    """Load dataset and model, then fill ordered windows. Never returns. Raises ActscopeError or OSError on failure."""
    _quiet()
    server.tell(Loading(f"opening {settings.dataset}"))
    texts = open_texts(settings.dataset, split=settings.split, column=settings.column, n=settings.texts or None)
    server.tell(Loading(f"loading {settings.model}"))
    reader = open_reader(
        settings.engine,  # FeedSettings has checked it
        settings.model,
        settings.sites,
        dtype=settings.dtype,
        batch_tokens=settings.batch_tokens,
        context=settings.context,
        device=settings.device,
        model_dtype=settings.model_dtype,
        threads=settings.threads,
        trust_remote_code=settings.trust_remote_code,
    )
    tokenizer = tokenizer_of(settings.model, trust_remote_code=settings.trust_remote_code)
    cutter = Cutter(tokenizer, context=settings.context, mask=settings.mask)
    stream_of = partial(_stream, texts, cutter, settings)
    facts = reader.facts
    server.tell(
        Loaded(
            pid=os.getpid(),
            engine=facts.engine,
            model=facts.model,
            revision=facts.revision,
            sites=list(facts.sites),
            width=facts.d_model,
            dtype=facts.dtype,
            deterministic=getattr(facts, "deterministic", True),
            dataset=texts.name,
            fingerprint=texts.fingerprint,
            n_texts=len(texts),
        )
    )
    described, fd = server.memories.get()
    memory = FeedMemory.attach(fd, Layout(*msgspec.structs.astuple(described)), writable=True)
    filler = Filler(reader, stream_of, memory, seed=settings.seed, shuffle=settings.shuffle)
    while True:
        order = server.orders.get()
        server.tell(filler.fill(order, _progress(server.tell, order.window, reader)))


def _stream(texts: object, cutter: Cutter, settings: FeedSettings, epoch: int) -> TextStream:
    return TextStream(
        texts,  # type: ignore[arg-type]
        cutter,
        seed=settings.seed,
        epoch=epoch,
        chunk_texts=settings.chunk_texts,
        shuffle=settings.shuffle,
    )


def _progress(tell: Tell, window: int, reader: Reader) -> Callable[[int], None]:
    """Return a callback that reports the rows of a window to the server, at most every `_TELL_S` seconds."""
    told = time.monotonic()

    def progress(rows: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            tell(Progress(window, rows, float(getattr(reader, "padding", 0.0))))

    return progress


def _quiet() -> None:
    """Disable the progress bars of libraries, to keep them out of the server's log. Progress is sent as messages."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
