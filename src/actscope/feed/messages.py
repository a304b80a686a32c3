"""What the feed's processes say to each other.

    generator → server    Loading, Loaded           once: what it does before it can read, and what it will read
                          Progress                  how far the window is that it fills, several times a second at most
                          Filled                    a window can be served
                          Failed                    it cannot go on; `fatal`: nor could another in its place
                          Beat                      it lives
    server → generator    Start                     once: the settings
                          Memory (+ descriptor)     where rows go
                          FillWindow                which window is next

    consumer → server     Hello                     once
                          Claim, Release, Beat
    server → consumer     Welcome (+ descriptor)    once: where rows are, read-only
                          Granted | NotReady | Ended | Refused, one for each Claim

All over unix sockets that only this user can have. A process ends its part when its socket does.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from actscope.serving.messages import Messages

GROUP = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a group may be called."""
Place = tuple[int, int]
"""A Mark: (chunk, skip)."""


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    what: str


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """The reader's facts and the dataset's. `deterministic`: whether the same texts give the same bits when read again."""

    pid: int
    engine: str
    model: str
    revision: str
    sites: list[str]
    width: int
    dtype: str
    deterministic: bool
    dataset: str
    fingerprint: str
    n_texts: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """`padding`: the share of the tokens read that were padding, so far."""

    window: int
    rows: int
    padding: float = 0.0


class WindowSums(msgspec.Struct, frozen=True, tag="sums"):
    """Over a window's rows at one site: float64 [width] sums of values and of squares, as bytes, and the sum of L2 norms."""

    values: bytes
    squares: bytes
    norms: float


class Filled(msgspec.Struct, frozen=True, kw_only=True, tag="filled"):
    window: int
    n_rows: int
    begun: Place
    after: Place
    epoch_over: bool
    seconds: float
    sums: list[WindowSums]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    message: str
    fatal: bool


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    pass


class Start(msgspec.Struct, frozen=True, tag="start"):
    """`settings`: FeedSettings as JSON, without what is secret."""

    settings: bytes


class Memory(msgspec.Struct, frozen=True, tag="memory"):
    n_windows: int
    window_rows: int
    n_sites: int
    width: int
    dtype: str


class FillWindow(msgspec.Struct, frozen=True, tag="fill"):
    window: int
    generation: int
    epoch: int
    number: int
    mark: Place | None


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    token: str
    group: Annotated[str, msgspec.Meta(pattern=GROUP)]


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    memory: Memory
    sites: list[str]
    model: str
    revision: str
    seed: int
    shuffle: bool
    most_rows: int
    lease_seconds: float


class Claim(msgspec.Struct, frozen=True, tag="claim"):
    n: int
    wait: float


class Release(msgspec.Struct, frozen=True, tag="release"):
    grant: int
    delivered: bool


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """An Extent, see `actscope.feed.buffer.allocator`."""

    window: int
    generation: int
    epoch: int
    number: int
    turn: int
    window_rows: int
    start: int
    n: int


class Granted(msgspec.Struct, frozen=True, tag="granted"):
    grant: int
    extents: list[Stretch]
    position: str
    next: str
    missed: int


class NotReady(msgspec.Struct, frozen=True, tag="not_ready"):
    message: str
    available: int


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    message: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """`failed`: the feed has failed, else it is the claim that is wrong."""

    message: str
    failed: bool


FromGenerator = Loading | Loaded | Progress | Filled | Failed | Beat
ToGenerator = Start | Memory | FillWindow
FromConsumer = Hello | Claim | Release | Beat
ToConsumer = Welcome | Granted | NotReady | Ended | Refused

FROM_GENERATOR: Messages[FromGenerator] = Messages(FromGenerator, most_bytes=1 << 28)
TO_GENERATOR: Messages[ToGenerator] = Messages(ToGenerator, most_bytes=1 << 20)
FROM_CONSUMER: Messages[FromConsumer] = Messages(FromConsumer, most_bytes=1 << 16)
TO_CONSUMER: Messages[ToConsumer] = Messages(ToConsumer, most_bytes=1 << 20)
