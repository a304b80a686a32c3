"""The wire's shapes as pydantic models: they check requests and make the OpenAPI document.

Answers on the token path are written by `wire.py` without them; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, StrictFloat, StrictInt, StrictStr

RequestState = Literal["running", "done", "aborted", "failed"]
Activation = Literal["identity", "relu", "sigmoid", "jumprelu"]


class Lenient(BaseModel):
    """A body of which only some fields are the gateway's business; the rest goes to the engine as it is."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


# Asking


class ActscopeAsk(Exact):
    """What scores a completion request wants."""

    probes: list[StrictStr] | None = Field(
        None, description="ids of the probes to send; all by default", max_length=4096
    )
    prompt: StrictBool | None = Field(None, description="send the prompt's tokens and scores too (default true)")
    features: StrictBool | None = Field(
        None, description="send the strongest features of the engine's SAE too (default false; refused without an SAE)"
    )
    rows: StrictBool | StrictStr | None = Field(
        None, description="whether rows leave the engine for its recording; vLLM: or of which sites, such as `0,7,15`"
    )
    full_prompt: StrictBool | None = Field(
        None, description="compute the whole prompt again even where it is cached, so that every position has its score"
    )
    keep: Annotated[StrictStr, Field(max_length=1000)] | None = Field(
        None, description="keep the request in the recording, and why"
    )


class StreamOptions(Lenient):
    include_usage: bool | None = None


class Completing(Lenient):
    """The fields that both kinds of completion share."""

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
        None, description="ask for scores; a plain OpenAI answer without it"
    )


class ChatMessage(Lenient):
    role: StrictStr
    content: StrictStr | list[Any] | None = None


class ChatCompletionRequest(Completing):
    """OpenAI's chat completion request; fields not named here go to the engine as they are."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[StrictInt, Field(ge=0)] | None = None


class CompletionRequest(Completing):
    """OpenAI's completion request; fields not named here go to the engine as they are."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]] | None = None


# Scores


class ProbeHeader(BaseModel):
    """One column of the score rows."""

    id: str
    site: str
    since: int = Field(description="generation at which it was put: scores from before are another probe's")


class TokenBlock(BaseModel):
    """Tokens of consecutive positions."""

    start: int = Field(description="position of the first one; 0 is the first prompt token")
    ids: list[int] = Field(description="-1: a token that the gateway has not seen")
    text: list[str] = Field(
        description="each token's own text; U+FFFD when its bytes are not valid UTF-8 by themselves"
    )
    bytes: dict[str, str] | None = Field(None, description="base64 of those bytes, by index in this block")


class ScoreBlock(BaseModel):
    """Scores of consecutive positions, one row each, cells in the order of the latest header."""

    start: int
    rows: list[list[float | None]]
    states: list[str] | None = Field(
        None,
        description="a letter for each cell: c computed, n never computed, m masked, x not finite; absent if all are c",
    )


class Sae(BaseModel):
    """A sparse autoencoder that the engine computes."""

    site: str
    name: str
    k: int = Field(description="how many of the features of a row are told: the strongest ones")
    n_features: int = Field(description="how many it has")


class FeatureBlock(BaseModel):
    """The strongest features of consecutive positions, strongest first; null for a position where none were computed."""

    start: int
    ids: list[list[int] | None] = Field(description="the features' numbers in the SAE")
    values: list[list[float | None] | None] = Field(
        description="their activations, in the same places; null where not finite"
    )


class Final(BaseModel):
    """The end of a choice, with its coverage."""

    finish_reason: str | None
    present: int
    computed: int
    cached: int = Field(description="of the computed ones, those that came with a cached prefix")


class ActscopePayload(BaseModel):
    """`choices[i].actscope`."""

    v: Literal[1]
    request: str | None = Field(None, description="id for /v1/actscope/requests; on the first payload of a choice")
    prompt_tokens: int | None = None
    probes: list[ProbeHeader] | None = Field(
        None, description="on the first payload, and whenever the set of probes changes or one is swapped"
    )
    sae: Sae | None = Field(None, description="on the first payload, if features were asked for")
    tokens: TokenBlock | None = None
    scores: ScoreBlock | None = None
    features: FeatureBlock | None = Field(None, description="beside `scores`, of the same positions, if asked for")
    final: Final | None = Field(None, description="on the last payload of a choice")


class Usage(Lenient):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(Lenient):
    role: str | None = None
    content: str | None = None


class ChatChoice(Lenient):
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
    index: int
    delta: AnswerMessage
    finish_reason: str | None = None
    actscope: ActscopePayload | None = None


class ChatCompletionChunk(Lenient):
    """One `data:` of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChoice(Lenient):
    index: int
    text: str
    finish_reason: str | None = None
    actscope: ActscopePayload | None = None


class Completion(Lenient):
    """OpenAI's completion, and one `data:` of it when streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


# Events


class TokenEvent(BaseModel):
    """Event `token`; header fields on the first one."""

    v: Literal[1]
    request: str | None = None
    prompt_tokens: int | None = None
    probes: list[ProbeHeader] | None = None
    tokens: TokenBlock
    t: float = Field(description="seconds since the request began")


class ProbeUpdateEvent(BaseModel):
    """Event `probe_update`."""

    v: Literal[1]
    probes: list[ProbeHeader] | None = None
    scores: ScoreBlock


class ProbeSummary(BaseModel):
    """One probe over all cells that were computed; null where none was, or where it has no threshold."""

    max: float | None
    argmax: int | None = Field(description="position of the maximum")
    mean: float | None
    over_threshold: int | None = Field(description="how many cells are at or over the threshold")


class ProbeFinalEvent(BaseModel):
    """Event `probe_final`."""

    v: Literal[1]
    present: int
    computed: int
    cached: int
    probes: dict[str, ProbeSummary]


class DoneEvent(BaseModel):
    """Event `done`; the stream closes after it."""

    v: Literal[1]
    finish_reason: str | None = Field(
        description="`abort` when cancelled, `error` when the engine failed, null when not known"
    )
    usage: Usage


class Events(BaseModel):
    """Data of the events, by name. Not an answer by itself: it is here so that clients get the types."""

    token: TokenEvent
    probe_update: ProbeUpdateEvent
    probe_final: ProbeFinalEvent
    done: DoneEvent


# The instrument


class EngineInfo(BaseModel):
    """The engine behind the gateway; everything but `state` is null while it is waited for."""

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
        default=None, description="false: only /v1/completions works with this model"
    )
    sae: Sae | None = Field(default=None, description="whose features can be asked for; null where there are none")


class Limits(BaseModel):
    max_body_bytes: int
    max_in_flight: int
    max_streams: int
    max_n: int
    log_requests: int
    log_positions: int


class RingCounts(BaseModel):
    """Rows that came out of the ring, and those that could not be used, since the gateway attached to it."""

    steps: int
    rows: int
    missed_steps: int = Field(description="overwritten before they were read")
    missed_rows: int
    dropped_rows: int = Field(description="never written by the engine")
    spurious_rows: int = Field(description="rejected drafts and rows after the end")
    mismatched_rows: int = Field(
        description="labelled with another token than the one at their position; never delivered"
    )
    unreadable_tables: int


class Info(BaseModel):
    version: str
    engine: EngineInfo
    limits: Limits
    ring: RingCounts | None = None


class Health(BaseModel):
    status: Literal["ok"]
    engine: Literal["up", "waiting"]


class Probe(Lenient):
    """A probe that is loaded."""

    id: str
    since: int = Field(0, description="generation at which it was put")
    label: str | None = None
    description: str | None = None
    site: str
    layer: int | None = None
    activation: Activation | None = None
    bias: float | None = None
    threshold: float | None = None
    fpr: float | None = Field(None, description="false-positive rate of the threshold on held-out text")
    range: tuple[float, float] | None = Field(None, description="fixed scale of its display")
    signed: bool | None = None
    auroc: float | None = None
    control_auroc: float | None = None
    token_mask: Literal["none", "special"] | None = None
    model: str | None = None
    revision: str | None = None


class Probes(BaseModel):
    generation: int
    probes: list[Probe]


class ProbeUpload(Lenient):
    """A probe to add or to swap in."""

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
    request: str
    state: RequestState
    created: float = Field(description="seconds since the epoch")
    model: str
    prompt_tokens: int | None
    completion_tokens: int
    source: Literal["gateway", "engine"]


class Requests(BaseModel):
    requests: list[RequestSummary]


class WholeRequest(ActscopePayload):
    """All of one request at once."""

    state: RequestState


class Cancelled(BaseModel):
    request: str
    state: RequestState


# Keeping


class MarkRequest(Exact):
    """What to keep of a request; all of it by default."""

    why: Annotated[StrictStr, Field(max_length=1000)] | None = Field(
        None, description="for whoever reads the recording"
    )
    before: StrictStr | Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="how much before its last row: a number of tokens, `20 tokens`, `5s`; all if absent"
    )
    after: StrictStr | Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="how much after its last row, likewise; all if absent"
    )
    wait: Annotated[FiniteFloat, Field(ge=0, le=3600)] | None = Field(
        None, description="seconds to wait for a request that has not begun"
    )


class Marked(BaseModel):
    """What has become of a mark."""

    request: str
    state: Literal["keeping", "kept", "pending"] = Field(
        description="keeping: it runs, and its future is kept too; pending: it has not begun"
    )
    running: bool
    rows: int = Field(description="positions of the request that the recording has, or is about to get")
    missing: int = Field(description="positions that were wanted and are gone")
    forgotten: list[tuple[int, int]] = Field(
        description="ranges (first, after) of those that had left the flight recorder"
    )
    dropped: list[tuple[int, int]] = Field(description="ranges of those that never came into it")


class FlightState(BaseModel):
    """What is still at hand, to be marked."""

    where: str = Field(description="`memory`, or a directory")
    rows: int
    bytes: int
    limit_bytes: int
    seconds: float = Field(description="age of the oldest row")
    limit_seconds: float | None
    requests: int
    running: int
    forgotten_rows: int
    dropped_rows: int = Field(description="rows that never came into it: its queue, or its disk, was full")
    faults: int


class KeptState(BaseModel):
    """What is in the recording, since the server began."""

    rows: int
    durable_rows: int = Field(description="rows from the recording's first that would survive a power cut")
    stored_bytes: int
    dropped_rows: int = Field(description="rows times sites that found the pipeline full")
    lost_rows: int = Field(description="rows that could not be handed over, for the disk had failed")


class TriggerState(BaseModel):
    rule: str
    firings: int
    probe_loaded: bool


class RecordingState(BaseModel):
    """What the engine records; everything but `recording` is absent when that is false."""

    recording: bool
    path: str | None = None
    sites: list[str] | None = None
    codec: str | None = None
    failure: str | None = Field(None, description="what has ended the recording, if anything did")
    sample: float | None = Field(None, description="share of all requests that is kept")
    triggers: list[TriggerState] | None = None
    marks: int | None = None
    marked_requests: int | None = None
    pending_marks: int | None = None
    flight: FlightState | None = None
    kept: KeptState | None = None


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error shape."""

    error: Problem


class Model(Lenient):
    id: str
    object: Literal["model"]


class Models(Lenient):
    object: Literal["list"]
    data: list[Model]
