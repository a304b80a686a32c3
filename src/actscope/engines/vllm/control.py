"""What the model's process and its sidecar say to each other, over a socket pair that nobody else has an end of.

    sidecar → model     Alive             once: its process
                        SetBank           the probes that are in force from the next pass on
                        Taken             how far raw rows have been taken out of shared memory
    model → sidecar     Start             once: what the sidecar needs to know, also of the one before it
                        Wish              a request has begun that asks for something
                        Staged            a bank has come, and will be in force at the next pass

A message is its length (4 bytes, little-endian) and MessagePack. The sidecar ends when the socket does.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import Any, TypeVar

import msgspec

from actscope.errors import EngineError
from actscope.ring.layout import RingSpec

MAX_MESSAGE = 1 << 30
_LENGTH = struct.Struct("<I")


class SiteBank(msgspec.Struct, frozen=True, tag="site"):
    """The probes of one site: weight float32 [d, k], bias and jump float32 [k], as bytes; code, column and since when of each."""

    site: int
    weight: bytes
    bias: bytes
    jump: bytes
    activation: list[int]
    columns: list[int]
    since: list[int]


class SetBank(msgspec.Struct, frozen=True, tag="bank"):
    """The probes of the sites that have changed; other sites stay as they are. `state` is for the next sidecar, see Start."""

    generation: int
    sites: list[SiteBank]
    state: bytes = b""


class Staged(msgspec.Struct, frozen=True, tag="staged"):
    generation: int


#: Longest text that is taken over from a request's wish.
MAX_WISH = 1000


class Wish(msgspec.Struct, frozen=True, tag="wish"):
    """`rows`: the sites that this request asked for, a selection, "" for all that are kept. `keep`: why to keep it, or ""."""

    request: str
    rows: str
    keep: str


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    pid: int


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """`step`: the last one whose raw rows have been taken out of shared memory."""

    step: int


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`served` is its name for clients, `source` a hub id or a directory, `commit` the hub's, or ""."""

    served: str
    source: str
    commit: str
    tokenizer: str
    device: str
    dtype: str
    n_layers: int
    d_model: int
    max_context: int
    vllm: str
    runner: str


class Features(msgspec.Struct, frozen=True):
    """An SAE in the graph: of each row at `site` the `k` strongest of `n_features`, in the columns behind the scores."""

    site: str
    k: int
    n_features: int
    name: str


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """`settings` are VllmSettings as JSON. `sites` are tapped here, `kept` of them with raw rows.

    A sidecar in the place of one that died gets the last `state` of its bank, and the last step that it had `taken` (-1: none).
    """

    card_id: str
    group: str
    part: int
    parts: int
    pid: int
    pid_start: int
    settings: bytes
    facts: ModelFacts
    ring: str
    rows_ring: str
    sites: list[str]
    kept: list[str]
    columns: int
    features: Features | None = None
    state: bytes = b""
    taken: int = -1


Message = Alive | SetBank | Staged | Wish | Taken | Start
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_encode = msgspec.msgpack.Encoder().encode

M = TypeVar("M")


def pack(message: Message) -> bytes:
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


def send(connection: socket.socket, message: Message) -> None:
    """Send a message whole; waits while the other side does not read."""
    connection.sendall(pack(message))


def receive(connection: socket.socket) -> Message | None:
    """The next message, or None when the other side has gone. Raises EngineError for what is none."""
    head = _read(connection, _LENGTH.size)
    if head is None:
        return None
    size = _LENGTH.unpack(head)[0]
    if size > MAX_MESSAGE:
        raise EngineError(f"a message of {size} bytes: expected at most {MAX_MESSAGE}")
    body = _read(connection, size)
    if body is None:
        return None
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise EngineError(f"a message that cannot be read: {error}") from error


def _read(connection: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view, have = memoryview(data), 0
    while have < size:
        try:
            n = connection.recv_into(view[have:])
        except (ConnectionError, OSError):
            return None
        if not n:
            return None
        have += n
    return data


def row_layout(columns: int, dtype: str) -> int:
    """How many elements of `dtype` the float32 scores at the head of a wide row take."""
    return columns if dtype == "float32" else 2 * columns


def rows_ring_spec(n_sites: int, d: int, columns: int, dtype: str, rows: int) -> RingSpec:
    """The ring of wide rows: a row is `columns` scores as float32 bits, then each kept site's vector, one behind the other."""
    steps = max(4096, rows // 8)
    elements = row_layout(columns, dtype) + n_sites * d
    return RingSpec(rows, elements, step_capacity=steps, span_capacity=max(2 * steps, rows), dtype=dtype)


_SUFFIX = re.compile(r"-[0-9a-f]{8}$")


def external_id(request: str) -> str:
    """The id that clients know: vLLM makes its own of it by adding eight hexadecimal digits."""
    return _SUFFIX.sub("", request)


def options_of(extra_args: Any) -> dict[str, Any]:
    """What a request asks of us, in `SamplingParams.extra_args` ("vllm_xargs" over HTTP) under "actscope".

    JSON text or an object: `rows` (true, false, or a selection of sites), `full_prompt`, `keep`. What cannot be understood is no
    reason to fail a request: it asks for nothing then.
    """
    asked = extra_args.get("actscope") if isinstance(extra_args, dict) else None
    if isinstance(asked, str):
        try:
            asked = msgspec.json.decode(asked)
        except (msgspec.DecodeError, RecursionError, UnicodeError):  # brackets without end, halves of characters
            return {}
    return asked if isinstance(asked, dict) else {}
