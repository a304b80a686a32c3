"""Rendering of `actscope` payloads and events for clients. The formats are in docs/wire.md."""

from __future__ import annotations

import base64
import math
from itertools import takewhile

import msgspec
import numpy as np

from actscope.gateway.api.wire import (
    WireCoverage,
    WireDone,
    WireFeatures,
    WirePayload,
    WireProbeFinal,
    WireProbeUpdate,
    WireScores,
    WireSummary,
    WireToken,
    WireTokens,
    WireUsage,
)
from actscope.gateway.scores.columns import EventKind
from actscope.gateway.scores.coverage import coverage_of
from actscope.gateway.scores.probe_table import Columns, SaeFacts
from actscope.gateway.scores.request_log import RequestLog

VERSION = 1

#: Blocks of at most this many rows are rendered by plain Python, which is faster for them than numpy.
_SMALL = 8

encode = msgspec.json.Encoder().encode


def token_block(log: RequestLog, a: int, b: int) -> WireTokens:
    """Return `tokens` of the positions `a .. b - 1`."""
    ids = log.tokens[a:b].tolist()
    own = [log.texts.own(i) for i in ids]
    block: WireTokens = {"start": a, "ids": ids, "text": [text for text, _ in own]}
    raw = {str(i): base64.b64encode(data).decode() for i, (_, data) in enumerate(own) if data is not None}
    if raw:
        block["bytes"] = raw
    return block


def score_block(log: RequestLog, a: int, b: int, columns: Columns) -> WireScores:
    """Return `scores` of the positions `a .. b - 1`, with cells in the order of `columns`."""
    values = log.scores.values(a, b, columns)
    computed = log.scores.computed(a, b)
    special = [t in log.special for t in log.tokens[a:b]]
    render = render_small if b - a <= _SMALL else render_bulk
    rows, states = render(values, computed, special, columns.masks)
    block: WireScores = {"start": a, "rows": rows}
    if states is not None:
        block["states"] = states
    return block


def feature_block(log: RequestLog, a: int, b: int, features: Columns) -> WireFeatures:
    """Return `features` of the positions `a .. b - 1`: indices and activations, strongest first; null for a row without."""
    values = log.scores.values(a, b, features)
    render = features_small if b - a <= _SMALL else features_bulk
    ids, strengths = render(values, log.scores.computed(a, b))
    return {"start": a, "ids": ids, "values": strengths}


RenderedFeatures = tuple[list[list[int] | None], list[list[float] | None]]


def features_small(values: np.ndarray, computed: bytes) -> RenderedFeatures:
    """Render features row by row. Reference implementation of `features_bulk`.

    Args:
        values: float32 [n, 2k], alternating index and activation. A row ends at its first index that is
            negative or NaN. A row that starts with NaN was not computed.
        computed: One byte for each row; 0 means never computed.

    Returns:
        Indices and activations of each row, None for a row that was not computed. Activations are rounded to nine significant
        digits. Those that are not finite stay so, and become null in JSON.
    """
    ids: list[list[int] | None] = []
    strengths: list[list[float] | None] = []
    for cells, here in zip(values.tolist(), computed, strict=True):
        given = here and cells and not math.isnan(cells[0])
        pairs = list(takewhile(lambda pair: pair[0] >= 0, zip(cells[0::2], cells[1::2], strict=True)))
        ids.append([int(number) for number, _ in pairs] if given else None)
        strengths.append([float(f"{value:.9g}") for _, value in pairs] if given else None)
    return ids, strengths


def features_bulk(values: np.ndarray, computed: bytes) -> RenderedFeatures:
    """Do the same as `features_small`, vectorized: 30,000 rows of 32 features take about 0.4 s."""
    numbers, strengths = values[:, 0::2], values[:, 1::2]
    given = np.frombuffer(computed, np.bool_) & ~np.isnan(numbers[:, :1]).all(axis=1)
    n_given = np.minimum.accumulate(numbers >= 0, axis=1).sum(axis=1).tolist()
    ids = np.nan_to_num(numbers).astype(np.int64).tolist()
    digits = np.where(np.isfinite(strengths), _nine_digits(strengths), strengths).tolist()
    ends = [n if here else None for n, here in zip(n_given, given.tolist(), strict=True)]
    return (
        [None if n is None else row[:n] for row, n in zip(ids, ends, strict=True)],
        [None if n is None else row[:n] for row, n in zip(digits, ends, strict=True)],
    )


Rendered = tuple[list[list[float | None]], list[str] | None]


def render_small(values: np.ndarray, computed: bytes, special: list[bool], masks: tuple[bool, ...]) -> Rendered:
    """Render score cells and states row by row. Reference implementation of `render_bulk`.

    Args:
        values: float32 [n, p], one column for each probe. NaN means never computed.
        computed: One byte for each row; 0 means never computed.
        special: Whether the token of each row is a special token.
        masks: Whether each probe is masked on special tokens.

    Returns:
        Rows of numbers, rounded to nine significant digits, with None for a cell without a score; and one string of state
        letters (c, n, m, x; see docs/wire.md) for each row, or None if all letters are c.
    """
    rows: list[list[float | None]] = []
    states: list[str] = []
    plain = True
    for cells, here, is_special in zip(values.tolist(), computed, special, strict=True):
        if here and not is_special and math.isfinite(sum(cells)):  # the common case
            rows.append([float(f"{v:.9g}") for v in cells])
            states.append("c" * len(cells))
            continue
        letters = "".join(_letter(v, here, is_special and mask) for v, mask in zip(cells, masks, strict=True))
        rows.append([float(f"{v:.9g}") if letter == "c" else None for v, letter in zip(cells, letters, strict=True)])
        states.append(letters)
        plain = plain and letters.count("c") == len(letters)
    return rows, None if plain else states


def _letter(value: float, computed: int, masked: bool) -> str:
    if not computed:
        return "n"
    if masked:
        return "m"
    if math.isfinite(value):
        return "c"
    return "n" if value != value else "x"


def render_bulk(values: np.ndarray, computed: bytes, special: list[bool], masks: tuple[bool, ...]) -> Rendered:
    """Do the same as `render_small`, vectorized: 30,000 rows of 8 probes take about 30 ms."""
    here = np.frombuffer(computed, np.bool_)[:, None]
    masked = np.array(special, bool)[:, None] & np.array(masks, bool)[None, :]
    finite = np.isfinite(values)
    numbers = _nine_digits(values).tolist()
    if bool((here & finite & ~masked).all()):
        return numbers, None
    missing = ~here | (np.isnan(values) & ~masked)
    letters = np.where(missing, "n", np.where(masked, "m", np.where(finite, "c", "x")))
    states = ["".join(row) for row in letters.tolist()]
    return [_blank(row, state) for row, state in zip(numbers, states, strict=True)], states


def _blank(row: list[float], state: str) -> list[float | None]:
    if state.count("c") == len(state):
        return list(row)
    return [v if letter == "c" else None for v, letter in zip(row, state, strict=True)]


def _nine_digits(values: np.ndarray) -> np.ndarray:
    """Round float32 to nine significant digits, as float64. They identify the float32 and halve the JSON's length."""
    wide = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    size = np.abs(wide)
    scale = 10.0 ** (8 - np.floor(np.log10(np.where(size > 0, size, 1.0))))
    return np.round(wide * scale) / scale


class ChoiceView:
    """Cursor of one client in the log of one choice: what has been sent, and what to send next.

    Args:
        log: Log of the choice.
        wanted: Ids of the probes to send, or None for all.
        prompt: Whether the tokens and scores of the prompt are sent.
        features: Whether features are sent.
    """

    def __init__(self, log: RequestLog, wanted: tuple[str, ...] | None, prompt: bool, features: bool = False) -> None:
        self.log = log
        self._wanted = wanted
        self._prompt = prompt
        self._features = features
        self._header: Columns | None = None
        self._sae: SaeFacts | None = None
        self._tokens = 0
        self._scores = 0

    def payload(self, *, final: bool = False) -> WirePayload | None:
        """Return everything new since the last call; None if nothing is new or the prompt is not known yet.

        `final` adds the end of the choice, and returns a payload in any case.
        """
        log = self.log
        if log.n_prompt is None and not final:
            return None
        payload: WirePayload = {"v": VERSION}
        if self._header is None:
            self._begin(payload)
        if len(log.tokens) > self._tokens:
            payload["tokens"] = token_block(log, self._tokens, len(log.tokens))
            self._tokens = len(log.tokens)
        if len(log.scores) > self._scores:
            self._add_scores(payload)
        if final:
            payload["final"] = {"finish_reason": log.finish_reason, **coverage(log, self._wanted)}
        return payload if len(payload) > 1 else None

    def _begin(self, payload: WirePayload) -> None:
        log = self.log
        payload["request"] = log.request
        payload["prompt_tokens"] = log.n_prompt
        self._set_header(self._choose(log.first_columns), payload)
        if self._features:
            self._set_sae(log.columns.sae, payload)
        if not self._prompt:
            self._tokens = self._scores = log.n_prompt or 0

    def _add_scores(self, payload: WirePayload) -> None:
        a, b = self._scores, len(self.log.scores)
        every = self.log.scores.columns_over(a, b)
        columns = self._choose(every)
        if columns is not self._header and columns != self._header:
            self._set_header(columns, payload)
        payload["scores"] = score_block(self.log, a, b, columns)
        if self._features:
            self._set_sae(every.sae, payload)
            payload["features"] = feature_block(self.log, a, b, every.features)
        self._scores = b

    def _set_sae(self, sae: SaeFacts | None, payload: WirePayload) -> None:
        if sae is not None and sae != self._sae:
            self._sae = payload["sae"] = sae

    def _set_header(self, columns: Columns, payload: WirePayload) -> None:
        self._header = columns
        payload["probes"] = columns.header()

    def _choose(self, columns: Columns) -> Columns:
        return columns.probes if self._wanted is None else columns.pick(self._wanted)


def whole(log: RequestLog, features: bool = False) -> WirePayload:
    """Return one choice as a single payload in the non-streaming format. It has `final` if the choice has ended."""
    payload = ChoiceView(log, None, True, features).payload(final=log.state != "running")
    if payload is None:
        header = log.first_columns.header()
        payload = {"v": VERSION, "request": log.request, "prompt_tokens": None, "probes": header}
        if features:
            payload["sae"] = log.columns.sae
    return payload


# Events


def event_bytes(log: RequestLog, i: int) -> bytes:
    """Return event number `i` (from 0) of a log as bytes of a server-sent event. Its `id` is `i + 1`.

    Deterministic: every client receives the same bytes.
    """
    kind, a, b, seconds = log.events[i]
    data: WireToken | WireProbeUpdate | WireProbeFinal | WireDone
    if kind is EventKind.TOKEN:
        data = _token_event(log, i, a, b, seconds)
    elif kind is EventKind.PROBE_UPDATE:
        data = _score_event(log, a, b)
    elif kind is EventKind.PROBE_FINAL:
        data = {"v": VERSION, **coverage(log), "probes": summary(log)}
    else:
        data = {"v": VERSION, "finish_reason": log.finish_reason, "usage": usage(log)}
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (i + 1, kind.name.lower().encode(), encode(data))


def _token_event(log: RequestLog, i: int, a: int, b: int, seconds: float) -> WireToken:
    tokens, t = token_block(log, a, b), round(seconds, 6)
    if i:
        return {"v": VERSION, "tokens": tokens, "t": t}
    header = log.first_columns.header()
    return {
        "v": VERSION,
        "request": log.request,
        "prompt_tokens": log.n_prompt,
        "probes": header,
        "tokens": tokens,
        "t": t,
    }


def _score_event(log: RequestLog, a: int, b: int) -> WireProbeUpdate:
    columns = log.scores.columns_over(a, b).probes
    before = log.scores.columns_over(a - 1, a) if a else log.first_columns
    scores = score_block(log, a, b, columns)
    if columns != before.probes:
        return {"v": VERSION, "probes": columns.header(), "scores": scores}
    return {"v": VERSION, "scores": scores}


def coverage(log: RequestLog, wanted: tuple[str, ...] | None = None) -> WireCoverage:
    """Return the coverage of the `wanted` probes (None: all), with reasons if more than the last position is missing."""
    found = coverage_of(log.scores, log.present, wanted)
    block: WireCoverage = {"present": found.present, "computed": found.computed, "cached": found.cached}
    if found.why:
        block["missing_cells"], block["why"] = found.missing_cells, list(found.why)
    if log.weights_since:
        block["weights"] = log.weights_since
    return block


def usage(log: RequestLog) -> WireUsage:
    """Return the token counts in OpenAI's format."""
    prompt = log.n_prompt or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": log.completion_tokens,
        "total_tokens": prompt + log.completion_tokens,
    }


def summary(log: RequestLog) -> dict[str, WireSummary]:
    """Return for each probe id a summary of its computed cells: maximum and its position, mean, number at or over the threshold.

    If a probe was replaced while the request ran, only its last version is summarized.
    """
    n = len(log.scores)
    columns = log.scores.columns_over(0, n).probes
    if not n or not columns.ids:
        return {}
    values = log.scores.values(0, n, columns).astype(np.float64)
    here = np.frombuffer(log.scores.computed(0, n), np.bool_)[:, None]
    special = np.array([t in log.special for t in log.tokens[:n]], bool)
    usable = here & np.isfinite(values) & ~(special[:, None] & np.array(columns.masks, bool)[None, :])
    return {
        name: _summary_of(values[:, i], np.flatnonzero(usable[:, i]), columns.thresholds[i])
        for i, name in enumerate(columns.ids)
    }


def _summary_of(values: np.ndarray, at: np.ndarray, threshold: float | None) -> WireSummary:
    if not len(at):
        return {"max": None, "argmax": None, "mean": None, "over_threshold": None if threshold is None else 0}
    found = values[at]
    best = int(np.argmax(found))
    over = None if threshold is None else int(np.count_nonzero(found >= threshold))
    return {
        "max": float(f"{found[best]:.9g}"),
        "argmax": int(at[best]),
        "mean": float(f"{found.mean():.9g}"),
        "over_threshold": over,
    }
