"""Messages between the feed's processes.

    generator → server    Loading, Loaded           at the start: the stage of loading, then the facts of model and dataset
                          Progress                  rows written to the window being filled; at most 5 times a second
                          Filled                    a window is complete and can be served
                          Failed                    the generator cannot continue; `fatal`: nor could a restarted one
                          Beat                      heartbeat
    server → generator    Start                     once: the settings
                          Memory (+ descriptor)     once: the buffer to write to
                          FillWindow                the next window to fill

    consumer → server     Hello                     once: token and group
                          Claim, Release, Beat
    server → consumer     Welcome (+ descriptor)    once: the buffer, read-only. NotReady while the model is being loaded
                          Granted | NotReady | Ended | Refused, one for each Claim

All messages go over unix sockets that only this user can open. A process ends its side when the socket closes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from actscope.serving.messages import Messages

GROUP = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Pattern of a group's name."""
Place = tuple[int, int]
"""A `StreamMark` on the wire: (chunk, skip)."""


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Stage of loading, in words."""

    what: str


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """Facts of the reader and of the dataset. `deterministic`: whether reading the same texts again gives the same bits."""

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
    """Rows written to a window so far. `padding`: share of padding among the tokens read so far."""

    window: int
    rows: int
    padding: float = 0.0


class WindowSums(msgspec.Struct, frozen=True, tag="sums"):
    """Sums over a window's rows at one site, in float64.

    Attributes:
        values: Sum of the values in each dimension, [width], as bytes.
        squares: Sum of their squares in each dimension, [width], as bytes.
        norms: Sum of the rows' L2 norms.
    """

    values: bytes
    squares: bytes
    norms: float


class Filled(msgspec.Struct, frozen=True, kw_only=True, tag="filled"):
    """Complete window.

    Attributes:
        window: Index of the window in memory.
        n_rows: Number of rows; 0 if the epoch had none left.
        begun: Point in the epoch's stream where its rows begin.
        after: Point where the rows of the next window begin, unless `epoch_over`.
        epoch_over: Whether the epoch ends with this window.
        seconds: Time that filling took.
        sums: Sums of each site, in the order of the sites.
    """

    window: int
    n_rows: int
    begun: Place
    after: Place
    epoch_over: bool
    seconds: float
    sums: list[WindowSums]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Reason why the generator ends. `fatal`: whether a restarted generator would fail the same way."""

    message: str
    fatal: bool


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """Sign of life."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """`settings`: FeedSettings as JSON, with a placeholder for the token."""

    settings: bytes


class Memory(msgspec.Struct, frozen=True, tag="memory"):
    """Fields of `Layout`, see `actscope.feed.buffer.layout`. Comes with the memory's descriptor."""

    n_windows: int
    window_rows: int
    n_sites: int
    width: int
    dtype: str


class FillWindow(msgspec.Struct, frozen=True, tag="fill"):
    """`Fill` on the wire, see `actscope.feed.buffer.allocator`."""

    window: int
    generation: int
    epoch: int
    number: int
    mark: Place | None


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Greeting of a client: the feed's token and the group that it joins."""

    token: str
    group: Annotated[str, msgspec.Meta(pattern=GROUP)]


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """Answer to a greeting: the layout of the memory, the facts of the feed, and the lease's length."""

    memory: Memory
    sites: list[str]
    model: str
    revision: str
    seed: int
    shuffle: bool
    most_rows: int
    lease_seconds: float


class Claim(msgspec.Struct, frozen=True, tag="claim"):
    """Request for the next `n` rows of the group. `wait`: longest wait for them, in seconds."""

    n: int
    wait: float


class Release(msgspec.Struct, frozen=True, tag="release"):
    """End of a grant. `delivered`: whether its rows count as delivered or as abandoned."""

    grant: int
    delivered: bool


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """`RowRange` on the wire, see `actscope.feed.buffer.allocator`."""

    window: int
    generation: int
    epoch: int
    number: int
    turn: int
    window_rows: int
    start: int
    n: int


class Granted(msgspec.Struct, frozen=True, tag="granted"):
    """`Grant` on the wire, see `actscope.feed.buffer.allocator`."""

    grant: int
    extents: list[Stretch]
    position: str
    next: str
    missed: int


class NotReady(msgspec.Struct, frozen=True, tag="not_ready"):
    """Negative answer: retry later. `available`: number of rows that are ready."""

    message: str
    available: int


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Negative answer: all epochs have been served."""

    message: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Negative answer. `failed`: True if the feed has failed, False if the claim is invalid."""

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
