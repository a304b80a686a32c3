"""What the model's process and its sidecar say to each other, over a socket pair that nobody else has an end of.

    sidecar → model     Alive             once: its process
                        SetBank           the probes that are in force from the next pass on
                        Taken             how far raw rows have been taken out of shared memory
    model → sidecar     Start             once: what the sidecar needs to know, also of the one before it
                        Wish              a request has begun that asks for something
                        Staged            a bank has come, and will be in force at the next pass

The sidecar ends when the socket does.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from actscope.ring.layout import RingSpec
from actscope.serving.messages import Messages


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


class RequestOptions(msgspec.Struct, frozen=True, tag="wish"):
    """`rows`: the sites that this request asked for, a selection, "" for all that are kept. `keep`: why to keep it, or ""."""

    request: str
    rows: str
    keep: str


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    pid: int


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """`step`: the last one whose raw rows have been taken out of shared memory."""

    step: int


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
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


class SidecarStart(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
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
    facts: ServedModel
    ring: str
    rows_ring: str
    sites: list[str]
    kept: list[str]
    columns: int
    features: Features | None = None
    state: bytes = b""
    taken: int = -1


Message = Alive | SetBank | Staged | RequestOptions | Taken | SidecarStart
_messages: Messages[Message] = Messages(Message, most_bytes=1 << 30)
pack, send, receive = _messages.pack, _messages.send, _messages.receive


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
