"""Pydantic models of the HTTP API. They validate requests and produce the OpenAPI document.

On the token path answers are built by `payloads.py` without these models, for speed. A test checks that both agree.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, StrictFloat, StrictInt, StrictStr

from actscope.gateway.api.replica_schemas import ReplicaInfo, RingCounts
from actscope.gateway.counters.schemas import CounterSource, Trouble

RequestState = Literal["running", "done", "aborted", "failed"]
Activation = Literal["identity", "relu", "sigmoid", "jumprelu"]


class Lenient(BaseModel):
    """Base of bodies with additional fields, which are passed through unchanged."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Exact(BaseModel):
    """Base of request bodies whose unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


# Requests


class ActscopeAsk(Exact):
    """Options of a completion request for scores and recording."""

    probes: list[StrictStr] | None = Field(
        None, description="ids of the probes whose scores are sent; all by default", max_length=4096
    )
    prompt: StrictBool | None = Field(None, description="also send the tokens and scores of the prompt (default true)")
    features: StrictBool | None = Field(
        None,
        description="also send the strongest features of the engine's SAE (default false; an error if it has none)",
    )
    rows: StrictBool | StrictStr | None = Field(
        None, description="whether the engine sends rows to its recording; with vLLM also the sites, such as `0,7,15`"
    )
    full_prompt: StrictBool | None = Field(
        None,
        description="recompute the whole prompt even if it is cached, so that every position has a score (vLLM only)",
    )
    keep: Annotated[StrictStr, Field(max_length=1000)] | None = Field(
        None, description="keep the request in the recording; the text is the reason"
    )


class StreamOptions(Lenient):
    """OpenAI's options of a streamed answer. Other fields are passed to the engine unchanged."""

    include_usage: bool | None = None


class Completing(Lenient):
    """Fields that both kinds of completion requests share."""

    model: StrictStr | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    temperature: StrictFloat | StrictInt | None = None
    top_p: StrictFloat | StrictInt | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    stop: StrictStr | list[StrictStr] | None = None
    actscope: StrictBool | ActscopeAsk | None = Field(
        None, description="request scores; without it the answer is a plain OpenAI answer"
    )


class ChatMessage(Lenient):
    """One message of a chat. Other fields are passed to the engine unchanged."""

    role: StrictStr
    content: StrictStr | list[Any] | None = None


class ChatCompletionRequest(Completing):
    """OpenAI's chat completion request. Other fields are passed to the engine unchanged."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[StrictInt, Field(ge=0)] | None = None


class CompletionRequest(Completing):
    """OpenAI's completion request. Other fields are passed to the engine unchanged."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]] | None = None


# Scores


class ProbeHeader(BaseModel):
    """One column of the score rows."""

    id: str
    site: str
    since: int = Field(
        description="generation at which the probe was added; earlier scores under this id belong to another probe"
    )


class TokenBlock(BaseModel):
    """Tokens of consecutive positions."""

    start: int = Field(description="position of the first token; 0 is the first prompt token")
    ids: list[int] = Field(description="token ids; -1 is a token unknown to the gateway")
    text: list[str] = Field(description="text of each token; U+FFFD if its bytes alone are not valid UTF-8")
    bytes: dict[str, str] | None = Field(
        None, description="base64 of the bytes of those tokens, by index in this block"
    )


class ScoreBlock(BaseModel):
    """Scores of consecutive positions: one row for each position, one cell for each probe of the latest header, in its order."""

    start: int
    rows: list[list[float | None]]
    states: list[str] | None = Field(
        None,
        description="one string for each row, one letter for each cell: c computed, n never computed, m masked, x not finite; "
        "absent if all are c",
    )


class Sae(BaseModel):
    """A sparse autoencoder that the engine computes."""

    site: str
    name: str
    k: int = Field(description="maximum number of features sent for each row, the strongest ones")
    n_features: int = Field(description="number of features of the SAE")


class FeatureBlock(BaseModel):
    """The strongest features of consecutive positions, strongest first. Null for a position without computed features."""

    start: int
    ids: list[list[int] | None] = Field(description="indices of the features in the SAE")
    values: list[list[float | None] | None] = Field(
        description="activations of the features, in the same order; null if not finite"
    )


class Coverage(BaseModel):
    """How many positions have scores. The last two fields are absent unless more than the last position has none."""

    present: int = Field(description="number of positions")
    computed: int = Field(description="positions where at least one of the probes has a value")
    cached: int = Field(description="computed positions whose scores were taken over with the prefix cache")
    missing_cells: int | None = Field(None, description="cells (a probe at a position) without a value")
    why: list[str] | None = Field(None, description="why cells have no value, in words")
    weights: list[tuple[int, int]] | None = Field(
        None, description="position, and version of the weights from there on"
    )


class Final(Coverage):
    """End of a choice, with its coverage."""

    finish_reason: str | None


class ActscopePayload(BaseModel):
    """`choices[i].actscope`."""

    v: Literal[1]
    request: str | None = Field(None, description="id under /v1/actscope/requests; on the first payload of a choice")
    prompt_tokens: int | None = None
    probes: list[ProbeHeader] | None = Field(
        None, description="on the first payload, and whenever the set of probes changes or a probe is replaced"
    )
    sae: Sae | None = Field(None, description="on the first payload, if features were requested")
    tokens: TokenBlock | None = None
    scores: ScoreBlock | None = None
    features: FeatureBlock | None = Field(
        None, description="with `scores`, for the same positions, if features were requested"
    )
    final: Final | None = Field(None, description="on the last payload of a choice")


class Usage(Lenient):
    """Token counts of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(Lenient):
    """Message of a choice, or in a stream the part of it that a chunk adds."""

    role: str | None = None
    content: str | None = None


class ChatChoice(Lenient):
    """One choice of a chat completion."""

    index: int
    message: AnswerMessage
    finish_reason: str | None
    actscope: ActscopePayload | None = None


class ChatCompletion(Lenient):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatChunkChoice(Lenient):
    """Part of one choice of a chat completion that a chunk adds."""

    index: int
    delta: AnswerMessage
    finish_reason: str | None = None
    actscope: ActscopePayload | None = None


class ChatCompletionChunk(Lenient):
    """One chunk (`data:`) of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChoice(Lenient):
    """One choice of a completion, or in a stream the part of it that a chunk adds."""

    index: int
    text: str
    finish_reason: str | None = None
    actscope: ActscopePayload | None = None


class Completion(Lenient):
    """OpenAI's completion; also one chunk (`data:`) of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


# Events


class TokenEvent(BaseModel):
    """Event `token`. The first one has `request`, `prompt_tokens` and `probes`."""

    v: Literal[1]
    request: str | None = None
    prompt_tokens: int | None = None
    probes: list[ProbeHeader] | None = None
    tokens: TokenBlock
    t: float = Field(description="seconds since the request began")


class ProbeUpdateEvent(BaseModel):
    """Event `probe_update`. `probes` is present if the set of probes has changed."""

    v: Literal[1]
    probes: list[ProbeHeader] | None = None
    scores: ScoreBlock


class ProbeSummary(BaseModel):
    """Summary of one probe over all computed cells. `max`, `argmax` and `mean` are null if there are none."""

    max: float | None
    argmax: int | None = Field(description="position of the maximum")
    mean: float | None
    over_threshold: int | None = Field(
        description="number of cells at or over the threshold; null for a probe without one"
    )


class ProbeFinalEvent(Coverage):
    """Event `probe_final`: coverage, and a summary of each probe."""

    v: Literal[1]
    probes: dict[str, ProbeSummary]


class DoneEvent(BaseModel):
    """Event `done`. The stream closes after it."""

    v: Literal[1]
    finish_reason: str | None = Field(
        description="`abort` if the request was cancelled, `error` if the engine failed, null if unknown"
    )
    usage: Usage


class Events(BaseModel):
    """Data of the events by name. Never sent as such; it exists so that generated clients get the types."""

    token: TokenEvent
    probe_update: ProbeUpdateEvent
    probe_final: ProbeFinalEvent
    done: DoneEvent


# Engine, probes and requests


class EngineInfo(BaseModel):
    """The engine behind the gateway. While `state` is `waiting`, all other fields are null."""

    state: Literal["up", "waiting"]
    kind: str | None = None
    model: str | None = None
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    n_layers: int | None = None
    d_model: int | None = None
    max_context: int | None = None
    has_chat_template: bool | None = Field(
        default=None, description="false if only /v1/completions works with this model"
    )
    sae: Sae | None = Field(default=None, description="the SAE whose features can be requested, or null")


class Limits(BaseModel):
    """Limits of this gateway: bytes of a body, requests in flight, event streams, choices of a request, size of the log."""

    max_body_bytes: int
    max_in_flight: int
    max_streams: int
    max_n: int
    log_requests: int
    log_positions: int


class Info(BaseModel):
    """Version and limits of the gateway, its engine, and the counts of the rings."""

    version: str
    engine: EngineInfo
    limits: Limits
    ring: RingCounts | None = Field(None, description="summed over all engines that were ever read")
    replicas: list[ReplicaInfo] = Field(
        [], description="the engines of the server, in their order; empty without actscope"
    )
    replicas_expected: int = Field(
        0,
        description="number of engines that the server has on all hosts; requests of those that are not listed have no scores",
    )
    scores: str | None = Field(
        None, description="why requests have no scores, or some of them have none; null if all have"
    )
    counters: list[CounterSource] = Field(description="all counters, by the process that counts")
    troubles: list[Trouble] = Field(
        description="the counters above zero that tell of a loss, a doubt or a fault, summed, with what to do"
    )


class Health(BaseModel):
    """Whether the gateway runs (always `ok`), and whether its engine is up."""

    status: Literal["ok"]
    engine: Literal["up", "waiting"]


class LearntRange(BaseModel):
    """How far the display range of a probe that states none is learnt."""

    tokens: int = Field(description="tokens that it was learnt from; first and special tokens are left out")
    settled: bool = Field(description="whether it only widens from now on")


class Probe(Lenient):
    """A loaded probe."""

    id: str
    since: int = Field(0, description="generation at which the probe was added")
    label: str | None = None
    description: str | None = None
    site: str
    layer: int | None = None
    activation: Activation | None = None
    bias: float | None = None
    threshold: float | None = None
    fpr: float | None = Field(None, description="false-positive rate of the threshold on held-out text")
    range: tuple[float, float] | None = Field(
        None, description="scale of the display: the probe's own, else learnt from scores; null while there are too few"
    )
    range_learnt: LearntRange | None = Field(None, description="set if the probe does not state a range")
    signed: bool | None = None
    auroc: float | None = None
    control_auroc: float | None = None
    token_mask: Literal["none", "special"] | None = None
    model: str | None = None
    revision: str | None = None


class Probes(BaseModel):
    """The loaded probes. `generation` grows with every change of them."""

    generation: int
    probes: list[Probe]


class ProbeUpload(Lenient):
    """A probe to add, or to replace another with."""

    vector: list[FiniteFloat] = Field(min_length=1, max_length=1 << 20)
    site: StrictStr
    bias: FiniteFloat | None = None
    activation: Activation | None = None
    jump: FiniteFloat | None = None
    label: StrictStr | None = None
    description: StrictStr | None = None
    threshold: FiniteFloat | None = None
    fpr: FiniteFloat | None = None
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    token_mask: Literal["none", "special"] | None = None


class RequestSummary(BaseModel):
    """A request in the log, without its tokens and scores."""

    request: str
    state: RequestState
    created: float = Field(description="seconds since the Unix epoch")
    model: str
    prompt_tokens: int | None
    completion_tokens: int
    source: Literal["gateway", "engine"]


class Requests(BaseModel):
    """The requests in the log."""

    requests: list[RequestSummary]


class WholeRequest(ActscopePayload):
    """A request with all its tokens and scores."""

    state: RequestState


class Cancelled(BaseModel):
    """State of a request after it was cancelled."""

    request: str
    state: RequestState


# Recording


class MarkRequest(Exact):
    """Options of a mark. By default the whole request is kept."""

    why: Annotated[StrictStr, Field(max_length=1000)] | None = Field(
        None, description="reason, stored in the recording"
    )
    before: StrictStr | Annotated[StrictInt, Field(ge=0)] | None = Field(
        None,
        description="how much to keep before the request's last row: a number of tokens, `20 tokens`, `5s`; all if absent",
    )
    after: StrictStr | Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="how much to keep after the request's last row, in the same units; all if absent"
    )
    wait: Annotated[FiniteFloat, Field(ge=0, le=3600)] | None = Field(
        None, description="seconds to wait for a request that has not begun"
    )


class Marked(BaseModel):
    """Result of a mark."""

    request: str
    state: Literal["keeping", "kept", "pending"] = Field(
        description="keeping: the request runs, and its future rows are kept too; kept: it has ended; "
        "pending: it has not begun"
    )
    running: bool
    rows: int = Field(description="positions of the request that are in the recording or queued for it")
    missing: int = Field(description="positions that were to be kept and are lost")
    forgotten: list[tuple[int, int]] = Field(
        description="ranges [first, after) of lost positions that had left the flight recorder"
    )
    dropped: list[tuple[int, int]] = Field(
        description="ranges of lost positions that never entered the flight recorder"
    )


class FlightState(BaseModel):
    """The flight recorder: rows in memory or on disk that a mark can still keep."""

    where: str = Field(description="`memory`, or a directory")
    rows: int
    bytes: int
    limit_bytes: int
    seconds: float = Field(description="age of the oldest row")
    limit_seconds: float | None
    requests: int
    running: int
    forgotten_rows: int
    dropped_rows: int = Field(description="rows that the flight recorder did not take: its queue or its disk was full")
    missed_ends: int = Field(description="requests whose end did not arrive, and that the engine does not run any more")
    faults: int


class KeptState(BaseModel):
    """Rows written to the recording since the server started."""

    rows: int
    durable_rows: int = Field(description="rows, counted from the first, that would survive a power failure")
    stored_bytes: int
    dropped_rows: int = Field(description="rows times sites that were dropped because the pipeline was full")
    lost_rows: int = Field(description="rows not written because the recording or the disk had failed")
    whole_requests: int = Field(description="ended requests of which every row that was to be kept is in the recording")
    incomplete_requests: int = Field(description="ended requests of which some rows that were to be kept are lost")
    lost_requests: int = Field(description="ended requests that were to be kept, with no row in the recording")


class TriggerState(BaseModel):
    """A trigger, the number of times it has fired, and whether its probe is loaded."""

    rule: str
    firings: int
    probe_loaded: bool


class RecordingState(BaseModel):
    """State of the engine's recording. If `recording` is false, all other fields but `failure` are absent.

    Of several data-parallel engines: counts are sums, and `replicas` has the state of each.
    """

    recording: bool
    path: str | None = None
    sites: list[str] | None = None
    codec: str | None = None
    failure: str | None = Field(None, description="error that ended the recording or kept it from starting, if any")
    sample: float | None = Field(None, description="share of all requests that is kept, 0 to 1")
    triggers: list[TriggerState] | None = None
    marks: int | None = None
    marked_requests: int | None = None
    pending_marks: int | None = None
    flight: FlightState | None = None
    kept: KeptState | None = None
    replicas: list[RecordingState] | None = None


class Problem(BaseModel):
    """Description of an error, in OpenAI's fields."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error in OpenAI's format."""

    error: Problem


class Model(Lenient):
    """A model that the engine serves."""

    id: str
    object: Literal["model"]


class Models(Lenient):
    """The models that the engine serves."""

    object: Literal["list"]
    data: list[Model]
