"""Units of the gateway without a server: rendering, tokens, logs, settings, the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support.gateway.scripted_tokens import ScriptedTokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from actscope.errors import SettingsError
from actscope.gateway import GatewaySettings, create_app
from actscope.gateway.api.completion_request import read_call
from actscope.gateway.api.payloads import ChoiceView, event_bytes, render_bulk, render_small, summary, whole
from actscope.gateway.api.schemas import ActscopePayload, DoneEvent, ProbeFinalEvent, ProbeUpdateEvent, TokenEvent
from actscope.gateway.scores.coverage import coverage_of
from actscope.gateway.scores.detokenizer import TokenTexts
from actscope.gateway.scores.matcher import Matcher
from actscope.gateway.scores.probe_table import Columns, table_of
from actscope.gateway.scores.replica import Replica, RingPart
from actscope.gateway.scores.request_ids import external_id, response_id
from actscope.gateway.scores.request_log import RequestLog
from actscope.gateway.scores.request_store import Sessions
from actscope.gateway.upstream import discovery, upstream
from actscope.gateway.upstream.sse import SseSplitter

TWO = table_of({"generation": 1, "probes": [{"slot": 0, "id": "a", "site": "s"}, {"slot": 2, "id": "b", "site": "s"}]})


@given(st.data())
def test_both_ways_of_rendering_agree(data: st.DataObject) -> None:
    """Whole arrays give what the plain loop gives, and every number is the same float32 again."""
    n, k = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 4))
    values = data.draw(npst.arrays(np.float32, (n, k), elements=st.floats(width=32)))
    computed = bytes(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    special = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    masks = tuple(data.draw(st.lists(st.booleans(), min_size=k, max_size=k)))
    slow, fast = render_small(values, computed, special, masks), render_bulk(values, computed, special, masks)
    assert slow[1] == fast[1]
    for row, slow_row, fast_row in zip(values.tolist(), slow[0], fast[0], strict=True):
        for value, one, other in zip(row, slow_row, fast_row, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert np.float32(one) == np.float32(other) == np.float32(value)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=30), st.integers(1, 4))
def test_rows_in_any_portions_make_the_same_log(portions: list[tuple[int, int]], per_add: int) -> None:
    """Rows may come in any portions, before or after their tokens and with holes: each position has its own row once."""
    log = RequestLog("r", source="gateway")
    log.set_prompt([7, 8, 9])
    rows: set[int] = set()
    at = 0
    for hole, n in portions:
        at += hole
        values = np.array([[p, -p] for p in range(at, at + n)], np.float32)
        ids = np.array([[7, 8, 9][p] if p < 3 else p for p in range(at, at + n)])
        if n == 1:
            log.take_row(at, int(ids[0]), values, TWO.columns, 0)
        else:
            log.take_rows(at, ids, values, TWO.columns, 0)
        rows |= set(range(at, at + n))
        at += n
    while len(log.tokens) < at + 1:
        log.add_tokens(list(range(len(log.tokens), len(log.tokens) + per_add)))
    log.finish("done", "stop")
    payload = whole(log)
    assert len(payload["scores"]["rows"]) == log.present
    for position, row in enumerate(payload["scores"]["rows"]):
        assert row == ([float(position), float(-position)] if position in rows else [None, None][: len(row)])
    assert coverage_of(log.scores, log.present).computed == len(rows)


def test_answers_on_the_wire_are_those_of_the_document() -> None:
    """What the fast path writes validates against the schemas, which generated clients use."""
    log = RequestLog("r", special=frozenset({7}))
    log.first_columns = TWO.columns
    log.set_prompt([7, 8])
    log.add_tokens([9])
    log.take_rows(0, np.array([7, 8]), np.array([[0.5, np.inf], [1, 2]], np.float32), TWO.columns, 0)
    log.finish("done", "stop")
    ActscopePayload.model_validate(whole(log), extra="forbid")
    kinds: dict[str, Any] = {
        "token": TokenEvent,
        "probe_update": ProbeUpdateEvent,
        "probe_final": ProbeFinalEvent,
        "done": DoneEvent,
    }
    for i in range(len(log.events)):
        _, kind, data = event_bytes(log, i).decode().strip().split("\n")
        kinds[kind.removeprefix("event: ")].model_validate_json(data.removeprefix("data: "), extra="forbid")


def test_a_probe_that_masks_special_tokens_says_so() -> None:
    """`m` on special tokens for the probe that asks for it, a number for the other."""
    table = table_of({"probes": [{"slot": 0, "id": "a", "token_mask": "special"}, {"slot": 1, "id": "b"}]})
    log = RequestLog("r", special=frozenset({7}))
    log.set_prompt([7, 8])
    log.take_rows(0, np.array([7, 8]), np.zeros((2, 2), np.float32), table.columns, 0)
    assert whole(log)["scores"] == {"start": 0, "rows": [[None, 0.0], [0.0, 0.0]], "states": ["mc", "cc"]}


def test_a_view_sends_nothing_twice() -> None:
    """With nothing new there is no payload."""
    log = RequestLog("r")
    log.set_prompt([1])
    view = ChoiceView(log, None, True)
    assert view.payload() is not None
    assert view.payload() is None


def version(since: int, threshold: float) -> Columns:
    """Probe `a` as it was put at generation `since`, and `b` as it has always been."""
    a = {"slot": 0, "id": "a", "site": "s", "since": since, "threshold": threshold}
    return table_of({"generation": since, "probes": [a, {"slot": 1, "id": "b", "site": "s"}]}).columns


def test_a_swapped_probe_does_not_take_over_the_scores_of_the_one_before() -> None:
    """The header comes again, the new version has no cell before the swap, and the summary is of it alone."""
    old, new = version(1, 0.5), version(2, 5.0)
    log = RequestLog("r")
    log.first_columns = old
    log.set_prompt([7, 8, 9, 10])
    view = ChoiceView(log, None, True)
    log.take_rows(0, np.array([7, 8]), np.array([[9, 1], [9, 2]], np.float32), old, 0)
    before = view.payload()
    log.take_rows(2, np.array([9, 10]), np.array([[5, 3], [4, 4]], np.float32), new, 0)
    after = view.payload()
    log.finish("done", "stop")
    assert before is not None
    assert after is not None
    assert before["scores"]["rows"] == [[9, 1], [9, 2]]
    assert [before["probes"][0]["since"], after["probes"][0]["since"]] == [1, 2]
    assert after["scores"]["rows"] == [[5, 3], [4, 4]]
    at_once = whole(log)
    assert at_once["probes"] == [{"id": "a", "site": "s", "since": 2}, {"id": "b", "site": "s", "since": 0}]
    assert at_once["scores"]["states"] == ["nc", "nc", "cc", "cc"]
    assert summary(log)["a"] == {"max": 5, "argmax": 2, "mean": 4.5, "over_threshold": 1}
    assert summary(log)["b"]["mean"] == 2.5


def test_a_score_on_the_threshold_counts_as_over() -> None:
    """As the probe's false-positive rate was measured: at or over."""
    log = RequestLog("r")
    log.set_prompt([7, 8, 9])
    log.take_rows(0, np.array([7, 8, 9]), np.array([[0.25, 0], [0.5, 0], [1, 0]], np.float32), version(1, 0.5), 0)
    assert summary(log)["a"]["over_threshold"] == 2


class OddReader:
    """A ring whose first batch is not one."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> object:
        self.reads += 1
        return object() if self.reads in (1, 3) else None

    def close(self) -> None:
        pass


def test_the_ring_is_read_on_after_rows_that_cannot_be_used(caplog: pytest.LogCaptureFixture) -> None:
    """An error in the middle of a look neither ends the timer nor reaches who asked for the look; it is logged once."""
    reader: Any = OddReader()
    card: Any = SimpleNamespace(kind="hf", special_ids=[], ring="x", part=0, plain_ids=False)

    async def run() -> None:
        matcher = Matcher(Sessions(GatewaySettings()), [Replica([RingPart(card, reader)])], TokenTexts.unknown())
        matcher.start()
        while reader.reads < 6:
            await asyncio.sleep(0.001)
        matcher.close()

    asyncio.run(asyncio.wait_for(run(), 5))
    assert [r.exc_info is not None for r in caplog.records] == [True]


def test_the_engine_is_looked_for_again_after_any_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Any exception while looking is logged once and counts as `no engine`."""

    looks = 0

    def broken(target: str) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            monkeypatch.setattr(discovery, "by_card", lambda target: found.set())
        raise KeyError("endpoint")

    monkeypatch.setattr(discovery, "by_card", broken)

    async def run() -> None:
        followed = upstream.Upstream(GatewaySettings(discovery_seconds=0.001))
        await followed.open(Sessions(GatewaySettings()))
        async with asyncio.timeout(5):
            await asyncio.to_thread(found.wait, 5)
        await followed.close()

    found = threading.Event()
    asyncio.run(run())
    assert found.is_set() and looks == 3
    assert [r.exc_info is not None for r in caplog.records] == [True]


def test_tables_gather_their_own_slots() -> None:
    """Columns come from the slots, and a slot beyond the ring's width is NaN."""
    assert TWO.gather(np.array([[1, 2, 3, 4]], np.float32)).tolist() == [[1, 3]]
    assert np.isnan(TWO.gather(np.array([[1, 2]], np.float32))[0, 1])


@given(st.text(max_size=200))
def test_byte_level_bytes_join_to_the_text(text: str) -> None:
    """Whatever the text, the tokens' bytes are its bytes."""
    assert b"".join(SCRIPTED.raw(i) for i in ScriptedTokens().encode(text)).decode() == text


@pytest.fixture(scope="module", autouse=True)
def scripted_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SCRIPTED
    directory = tmp_path_factory.mktemp("tokenizer")
    ScriptedTokens().save(directory)
    SCRIPTED = TokenTexts.load(directory)


SCRIPTED = TokenTexts.unknown()


@pytest.mark.parametrize("text", ["snow ❄ falls", "naïve café", "日本語 and 🙂🙂", "tabs\tand\nlines"])
def test_trained_byte_level_tokenizers(tmp_path: Path, text: str) -> None:
    """A real ByteLevel BPE, trained here."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text, "snow falls and falls"] * 3, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = TokenTexts.load(tmp_path)
    ids = tokenizer.encode(text + "<|end|>").ids
    assert b"".join(texts.raw(i) for i in ids).decode() == text + "<|end|>"


def test_metaspace_with_byte_fallback(tmp_path: Path) -> None:
    """The SentencePiece kind: ▁ is a space, <0xE2> is a byte."""
    vocabulary = {"<unk>": 0, "▁snow": 1, "▁": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = TokenTexts.load(tmp_path)
    ids = [1, 2, *(3 + b for b in "❄".encode())]
    assert b"".join(texts.raw(i) for i in ids).decode() == " snow ❄" == tokenizer.decode(ids)
    assert texts.own(3 + 0xE2) == ("\ufffd", b"\xe2")
    assert texts.own(10**6) == ("\ufffd", None)


@given(st.binary(max_size=300), st.lists(st.integers(1, 20), min_size=1))
@example(b"", [19])
@example(b"", [1])
def test_events_are_split_the_same_however_they_come(noise: bytes, cuts: list[int]) -> None:
    """Pieces of any size make the same events, and nothing follows [DONE]."""
    stream = (
        b"data: {}\r\n\r\n: hi\n\n" + noise.replace(b"\n", b"").replace(b"\r", b"") + b"\n\ndata: [DONE]\n\ndata: x\n\n"
    )
    pieces, at, splitter = [], 0, SseSplitter()
    while at < len(stream) and not splitter.done:
        cut = cuts[at % len(cuts)]
        pieces += splitter.feed(stream[at : at + cut])
        at += cut
    assert pieces == SseSplitter().feed(stream)
    assert splitter.done


def log_of(name: str, positions: int, source: str = "gateway", *, ended: bool = True) -> RequestLog:
    log = RequestLog(name, source=source)  # type: ignore[arg-type]
    log.set_prompt([1] * positions)
    if ended:
        log.finish("done", "stop")
    return log


def test_sessions_forget_the_oldest_ended_first() -> None:
    """By number and by positions; what runs through the gateway is kept."""
    sessions = Sessions(GatewaySettings(log_requests=3, log_positions=100))
    for log in (log_of("a", 10, ended=False), log_of("b", 10, "engine", ended=False), log_of("c", 10), log_of("d", 10)):
        sessions.add(log)
    assert [log.request for log in sessions] == ["a", "b", "d"]
    sessions.add(log_of("e", 95))
    assert [log.request for log in sessions] == ["a", "e"]
    assert sessions.was_forgotten("b")
    assert not sessions.was_forgotten("a")


def test_ids_of_choices() -> None:
    """vLLM's names, for each kind of request."""

    def of(path: str, kind: str = "hf", **body: object) -> tuple[str, ...]:
        call = read_call(path, msgspec.json.encode(body), 16, kind)
        return tuple(c.replace(call.request_id, "R") for c in call.choices)

    assert of("/v1/chat/completions", messages=[]) == ("chatcmpl-R",)
    assert of("/v1/chat/completions", messages=[], n=2) == ("0_chatcmpl-R", "1_chatcmpl-R")
    assert of("/v1/completions", prompt="x") == ("cmpl-R-0",)
    assert of("/v1/completions", prompt=["x", "y"], n=2) == ("0_cmpl-R-0", "1_cmpl-R-0", "0_cmpl-R-1", "1_cmpl-R-1")
    assert of("/v1/completions", prompt=[1, 2]) == ("cmpl-R-0",)


def test_vllm_ids_lose_their_suffix() -> None:
    """Eight hex digits, at the end only, and for vLLM only."""

    def of(kind: str, plain_ids: bool = False) -> Callable[[str], str]:
        return external_id(cast(Any, SimpleNamespace(kind=kind, plain_ids=plain_ids)))

    assert of("vllm")("0_chatcmpl-R-0123abcd") == "0_chatcmpl-R"
    assert of("vllm")("chatcmpl-R-xyz") == "chatcmpl-R-xyz"
    assert of("hf")("chatcmpl-R-0123abcd") == "chatcmpl-R-0123abcd"
    assert of("vllm", plain_ids=True)("chatcmpl-R-0123abcd") == "chatcmpl-R-0123abcd"


@pytest.mark.parametrize(
    ("choice", "response"),
    [
        ("chatcmpl-R", "chatcmpl-R"),
        ("2_chatcmpl-R", "chatcmpl-R"),
        ("cmpl-R-0", "cmpl-R"),
        ("1_cmpl-a-1-0", "cmpl-a-1"),
        ("chatcmpl-R-0", "chatcmpl-R-0"),
        ("7_own", "7_own"),
    ],
)
def test_a_choice_names_its_response(choice: str, response: str) -> None:
    assert response_id(choice) == response


@pytest.mark.parametrize("wrong", [{"port": 70000}, {"token": "short"}, {"max_n": 0}, {"cors_origins": ("http://x/",)}])
def test_settings_that_cannot_be_met_are_refused(wrong: dict[str, object]) -> None:
    """With the setting's name."""
    with pytest.raises(
        SettingsError, match=next(iter(wrong)).split("_")[0].upper() if "cors" in str(wrong) else next(iter(wrong))
    ):
        GatewaySettings(**wrong)  # type: ignore[arg-type]


def test_the_document_describes_everything_that_is_sent() -> None:
    """Operation ids are tidy, every reference leads somewhere, and the streams' shapes are there."""
    document = create_app(GatewaySettings()).openapi()
    ids = {op["operationId"] for path in document["paths"].values() for op in path.values()}
    assert {"createChatCompletion", "watchRequest", "putProbe", "getInfo"} <= ids
    text = json.dumps(document)
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        assert part.split('"')[0] in document["components"]["schemas"]
    assert {"ChatCompletionChunk", "TokenEvent", "ProbeUpdateEvent", "ActscopePayload"} <= set(
        document["components"]["schemas"]
    )
