"""Protocol between the model's process and its sidecar, over a private socket pair.

    sidecar → model     Alive             once: the sidecar's pid
                        SetBank           probes to apply from the next pass on
                        Taken             last step whose raw rows were read from shared memory
                        Marked            a request is marked
                        Settled           marked requests have ended: their rows are in the file, or counted as lost
    model → sidecar     SidecarStart      once: everything that a new or restarted sidecar needs
                        RequestOptions    recording options of a request that begins, and what computes it
                        RunningRequests           every 5 seconds: the requests that run, and the worker's counts
                        WeightsChanged    the model's weights are others from the next pass on
                        Staged            a bank was received; it is applied before the next pass

The sidecar ends when the socket closes.
"""

from __future__ import annotations

import os
import re

import msgspec

from actscope.errors import RequestRefused
from actscope.ring.layout import RingSpec
from actscope.runtime.decoding import decode_json
from actscope.serving.messages import Messages


class SiteBank(msgspec.Struct, frozen=True, tag="site"):
    """The probes of one site.

    `weight` float32 [d, k], `bias` and `jump` float32 [k], all as bytes; then each probe's activation code, column, and the
    generation at which it was put there.
    """

    site: int
    weight: bytes
    bias: bytes
    jump: bytes
    activation: list[int]
    columns: list[int]
    since: list[int]


class SetBank(msgspec.Struct, frozen=True, tag="bank"):
    """Probes of the sites that changed; other sites keep theirs. `state` is a bank dump for a restarted sidecar."""

    generation: int
    sites: list[SiteBank]
    state: bytes = b""


class Staged(msgspec.Struct, frozen=True, tag="staged"):
    """Acknowledges a SetBank."""

    generation: int


#: Most characters kept of each text in a request's options.
MAX_OPTION_CHARS = 1000


class RequestOptions(msgspec.Struct, frozen=True, tag="wish"):
    """Recording options of a request, and what computes it.

    `rows` is a selection of sites, or "" for all kept sites; `keep` is the reason to keep the request, or "". `adapter` is the
    name of its LoRA adapter, or "". `name` is what the recording calls it, once a sidecar has marked it. `weights` is the version
    of the model's weights (see `WeightsChanged`). Sent again when that
    changes while the request runs.
    """

    request: str
    rows: str = ""
    keep: str = ""
    adapter: str = ""
    weights: int = 0
    name: str = ""


class WeightsChanged(msgspec.Struct, frozen=True, tag="weights"):
    """The model's weights have changed since it was loaded: for the `version`-th time.

    `refused` are the sites that are not read from now on, and why, by name; it replaces that of SidecarStart.
    """

    version: int
    refused: dict[str, str]


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """The process id of the sidecar."""

    pid: int


class SidecarCounts(msgspec.Struct, frozen=True):
    """Exact counts that outlive a sidecar: the next one goes on from them.

    `missed_rows` were overwritten before they were read; `dropped_rows` never reached shared memory. `late_options` counts
    requests whose options did not arrive in time, so that rows of all sites were taken. The others are those of `Outcomes`.
    """

    missed_rows: int = 0
    dropped_rows: int = 0
    late_options: int = 0
    whole: int = 0
    incomplete: int = 0
    lost: int = 0
    missed_ends: int = 0


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The last step whose raw rows were read from shared memory, and the index of the row behind it (`RingReader.next_row`)."""

    step: int
    row: int = 0
    counts: SidecarCounts = SidecarCounts()


class Marked(msgspec.Struct, frozen=True, tag="marked"):
    """A request (the engine's id) is marked, by whatever: it is to be kept, for this reason. The recording calls it `name`."""

    request: str
    why: str
    name: str


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """Marked requests (the engine's ids) have ended: their rows are in the file, or lost. `counts` has them."""

    requests: list[str]
    counts: SidecarCounts


class RunningRequests(msgspec.Struct, frozen=True, tag="running"):
    """The requests that run, and the counts of the model's process (`RunnerSession.account`)."""

    requests: list[str]
    account: dict[str, int] = {}


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The model as vLLM serves it.

    `served` is its name for clients, `source` a hub id or a directory, `commit` the hub's commit or "".
    """

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
    """An SAE in the graph.

    For each row at `site`, the `k` strongest of `n_features` features are in the columns after the scores.
    """

    site: str
    k: int
    n_features: int
    name: str


class SidecarStart(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Everything that a sidecar needs to start.

    `settings` are VllmSettings as JSON. `no_rows` is why there is no ring of raw rows, if there should be one. `sites` are
    tapped in this process; `kept` are those with raw rows; `refused` are selected sites that cannot be read, and why, by name.
    The engine is data-parallel engine `replica` of `replicas`. A restarted sidecar also gets the last bank `state`, the last step
    `taken` (-1: none), the index of the row behind it, the version of the `weights`, the `counts` of those before it and how many
    those are, the requests that are `running`, and the `wishes`: options of running requests, and of those that have ended and
    are not settled.
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
    no_rows: str = ""
    sites: list[str]
    kept: list[str]
    columns: int
    replica: int = 0
    replicas: int = 1
    features: Features | None = None
    refused: dict[str, str] = {}
    state: bytes = b""
    taken: int = -1
    weights: int = 0
    taken_row: int = 0
    counts: SidecarCounts = SidecarCounts()
    restarts: int = 0
    running: list[str] = []
    wishes: list[RequestOptions] = []


Message = (
    Alive
    | SetBank
    | Staged
    | RequestOptions
    | WeightsChanged
    | Taken
    | Marked
    | Settled
    | RunningRequests
    | SidecarStart
)
_messages: Messages[Message] = Messages(Message, most_bytes=1 << 30)
pack, send, receive = _messages.pack, _messages.send, _messages.receive


def row_layout(columns: int, dtype: str) -> int:
    """Return how many elements of `dtype` the float32 scores at the head of a wide row take."""
    return columns if dtype == "float32" else 2 * columns


def rows_ring_spec(n_sites: int, d: int, columns: int, dtype: str, rows: int) -> RingSpec:
    """Return the ring of wide rows. A row is `columns` scores as float32 bits, then each kept site's vector in turn."""
    steps = max(4096, rows // 8)
    elements = row_layout(columns, dtype) + n_sites * d
    return RingSpec(rows, elements, step_capacity=steps, span_capacity=max(2 * steps, rows), dtype=dtype)


_SUFFIX = re.compile(r"-[0-9a-f]{8}$")


def ids_are_plain() -> bool:
    """Return whether vLLM is told not to add a random suffix to request ids. Its engines inherit the server's environment."""
    return os.environ.get("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "0").strip() not in ("", "0")


def external_id(request: str) -> str:
    """Return the client's request id: vLLM appends a hyphen and eight hexadecimal digits to it, unless `ids_are_plain`."""
    return request if ids_are_plain() else _SUFFIX.sub("", request)


def options_of(extra_args: object) -> dict[str, object]:
    """Return a request's options from `SamplingParams.extra_args["actscope"]` ("vllm_xargs" over HTTP).

    The value is JSON text or an object with `rows` (true, false, or a selection of sites), `full_prompt` and `keep`. A value that
    cannot be read never fails the request: it counts as no options.
    """
    asked = extra_args.get("actscope") if isinstance(extra_args, dict) else None
    if isinstance(asked, str):
        try:
            asked = decode_json(asked, object, RequestRefused, "the options of a request")
        except RequestRefused:
            return {}
    return asked if isinstance(asked, dict) else {}
