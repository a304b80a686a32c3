"""`actscope.client` with the real package `openai`, against `actscope serve`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support.gateway.conformance import dumped
from support.gateway.stage import Place, picture

from actscope import client as scored
from actscope.client import ScoredChatCompletion, ScoredCompletion, ScoredOpenAI, Scores, ScoreState, wrap
from actscope.errors import ScoresError, ScoresNotFound, SettingsError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me about a fox in the snow"}]
GREEDY: Any = {"max_tokens": 12, "temperature": 0}
LETTERS = {ScoreState.VALUE: "c", ScoreState.NEVER_COMPUTED: "n", ScoreState.MASKED: "m", ScoreState.NOT_FINITE: "x"}


def check(scores: Scores, answer: list[dict[str, Any]], index: int = 0) -> None:
    """The scores are those of the payloads, put together by the tests' own reader."""
    expected = picture(answer, index)
    assert [token.position for token in scores] == sorted(expected.ids)
    assert {token.position: token.id for token in scores} == expected.ids
    assert {token.position: token.raw for token in scores} == expected.raw
    cells = {(t.position, probe): score for t in scores for probe, score in t.scores.items()}
    assert {key: score.value for key, score in cells.items()} == expected.cells
    assert {key: LETTERS[score.state] for key, score in cells.items()} == expected.states
    assert scores.request == expected.request
    assert scores.complete
    assert scores.n_resolved == len(scores) > 5


def same(one: Scores, other: Scores) -> None:
    assert list(one) == list(other)
    assert (one.request, one.probes, one.coverage) == (other.request, other.probes, other.coverage)


def test_a_whole_answer_is_openais_own_with_scores(client: ScoredOpenAI, place: Place) -> None:
    chat = client.chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY)
    assert isinstance(chat, ScoredChatCompletion) and issubclass(ScoredChatCompletion, ChatCompletion)
    check(chat.scores, [dumped(chat)])
    assert chat.choices[0].message.content
    assert chat.scores.text.endswith(chat.choices[0].message.content)
    assert chat._request_id == chat.id
    text = client.completions.create(model=place.model, prompt="The fox ran over the snow", **GREEDY)
    assert isinstance(text, ScoredCompletion) and issubclass(ScoredCompletion, Completion)
    check(text.scores, [dumped(text)])


def test_the_token_that_was_never_fed_back_has_no_score(client: ScoredOpenAI, place: Place) -> None:
    found = client.chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY).scores
    assert {score.state for score in found[-1].scores.values()} == {ScoreState.NEVER_COMPUTED}
    assert ScoreState.VALUE in {score.state for score in found[-2].scores.values()}
    assert found.values("danger").shape == (len(found),)
    assert found.coverage is not None
    assert found.coverage.computed == len(found) - 1


def test_a_stream_of_chunks_is_openais_own_and_its_scores_grow(client: ScoredOpenAI, place: Place) -> None:
    """At each chunk only the last tokens may be pending; with the finish chunk, none is."""
    chunks: list[dict[str, Any]] = []
    with client.chat.completions.create(model=place.model, messages=MESSAGES, stream=True, **GREEDY) as stream:
        for chunk in stream:
            assert isinstance(chunk, ChatCompletionChunk)
            chunks.append(dumped(chunk))
            n = stream.scores.n_resolved
            assert [token.pending for token in stream.scores] == [False] * n + [True] * (len(stream.scores) - n)
    check(stream.scores, chunks)
    assert not any(token.pending for token in stream.scores)
    text = client.completions.create(model=place.model, prompt="The fox", stream=True, **GREEDY)
    check(text.scores if (found := [dumped(chunk) for chunk in text]) else Scores(), found)


def test_tokens_come_in_order_with_their_scores(client: ScoredOpenAI, place: Place) -> None:
    stream = client.chat.completions.create(model=place.model, messages=MESSAGES, stream=True, **GREEDY)
    tokens = list(stream.tokens())
    assert tokens == list(stream.scores)
    assert not any(token.pending for token in tokens)
    assert [token.in_prompt for token in tokens].count(False) == 12


def test_tokens_do_not_wait_for_the_end(client: ScoredOpenAI, place: Place) -> None:
    """The first token of the answer is out, with its scores, long before the choice has ended."""
    stream = client.chat.completions.create(
        model=place.model, messages=MESSAGES, stream=True, max_tokens=200, extra_body={"ignore_eos": True}
    )
    first = next(token for token in stream.tokens() if not token.in_prompt)
    assert first.scores["danger"].state is ScoreState.VALUE
    assert not stream.scores.complete
    stream.close()


async def test_the_asynchronous_client_gives_the_same(client: ScoredOpenAI, place: Place) -> None:
    chat = client.chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY)
    text = client.completions.create(model=place.model, prompt="The fox", **GREEDY)
    async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key=place.token, max_retries=0) as plain:
        other = wrap(plain)
        whole = await other.chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY)
        stream = await other.chat.completions.create(model=place.model, messages=MESSAGES, stream=True, **GREEDY)
        tokens = [token async for token in stream.tokens()]
        again = await other.completions.create(model=place.model, prompt="The fox", stream=True, **GREEDY)
        async with again:
            chunks = [dumped(chunk) async for chunk in again]
        found = await other.scores(whole.id)
        with pytest.raises(ScoresNotFound):
            await other.scores("chatcmpl-none")
    check(whole.scores, [dumped(whole)])
    check(again.scores, chunks)
    same(found, whole.scores)
    assert [t.scores for t in whole.scores] == [t.scores for t in chat.scores] == [t.scores for t in tokens]
    assert [t.scores for t in again.scores] == [t.scores for t in text.scores]


def test_each_choice_has_scores_of_its_own(client: ScoredOpenAI, place: Place) -> None:
    answer = client.completions.create(model=place.model, prompt=["The fox", "The sea"], n=2, seed=1, max_tokens=12)
    assert sorted(answer.all_scores) == [0, 1, 2, 3]
    for index, found in answer.all_scores.items():
        check(found, [dumped(answer)], index)
        same(client.scores(found.request), found)
    with pytest.raises(ScoresNotFound, match=r"has 4 choices.*0_cmpl-"):
        client.scores(answer.id)


def test_options_of_the_client_and_of_a_call(client: ScoredOpenAI, place: Place) -> None:
    """Those of a call override single ones of the client; `extra_body` is the caller's own; False asks for none."""
    few = wrap(client, probes=["joy"], prompt=False)
    found = few.chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY).scores
    assert {probe.id for probe in found.probes} == set(found[0].scores) == {"joy"}
    assert not any(token.in_prompt for token in found)
    assert found[0].position == found.prompt_tokens
    other = few.chat.completions.create(
        model=place.model, messages=MESSAGES, actscope={"probes": ["danger", "joy"]}, **GREEDY
    ).scores
    assert [probe.id for probe in other.probes] == ["danger", "joy"]
    assert not other[0].in_prompt
    own = few.chat.completions.create(model=place.model, messages=MESSAGES, extra_body={"actscope": True}, **GREEDY)
    assert own.scores[0].in_prompt
    none = few.chat.completions.create(model=place.model, messages=MESSAGES, actscope=False, **GREEDY)
    assert not none.all_scores
    with pytest.raises(ScoresNotFound, match="did not ask for scores"):
        _ = none.scores


def test_a_stream_that_asks_for_no_scores_is_a_plain_one(client: ScoredOpenAI, place: Place) -> None:
    stream = client.chat.completions.create(model=place.model, messages=MESSAGES, stream=True, actscope=False, **GREEDY)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert not stream.all_scores


def test_the_wrapped_client_is_openais_in_all_else(client: ScoredOpenAI, plain: openai.OpenAI, place: Place) -> None:
    """Other methods, copies, raw responses and the accumulating helper work; the client that was wrapped is unchanged."""
    assert isinstance(client, openai.OpenAI)
    assert client.models.list().data[0].id == place.model
    copied = client.with_options(timeout=20)
    assert copied.chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY).scores
    raw = client.chat.completions.with_raw_response.create(model=place.model, messages=MESSAGES, **GREEDY)
    assert "actscope" in json.loads(raw.text)["choices"][0]
    with client.chat.completions.stream(model=place.model, messages=MESSAGES, **GREEDY) as helper:
        said = "".join(event.delta for event in helper if event.type == "content.delta")
    assert client.scores(helper.current_completion_snapshot.id).text.endswith(said)
    before = plain.chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY)
    assert not hasattr(before, "scores")
    assert "actscope" not in dumped(before)["choices"][0]


def test_a_subclass_of_the_users_stays_what_it_is(place: Place) -> None:
    class Own(openai.OpenAI):
        def greeting(self) -> str:
            return "hello"

    with Own(base_url=f"{place.url}/v1", api_key=place.token) as own:
        client: Any = wrap(own)
        assert client.greeting() == "hello"
        assert isinstance(client, Own)
        assert wrap(client).chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY).scores


def test_scores_are_looked_up_by_the_id_of_a_response(plain: openai.OpenAI, client: ScoredOpenAI, place: Place) -> None:
    """Also of a request that did not ask for any, from its own process's variables or with an address."""
    answer = plain.chat.completions.create(model=place.model, messages=MESSAGES, **GREEDY)
    found = scored.scores(answer.id, base_url=f"{place.url}/v1", api_key=place.token)
    same(found, client.scores(answer.id))
    assert answer.choices[0].message.content
    assert found.text.endswith(answer.choices[0].message.content)
    assert found.coverage is not None
    assert found.coverage.computed == len(found) - 1


def test_the_address_of_a_look_up_is_by_default_that_of_openais_variables(
    plain: openai.OpenAI, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{place.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", place.token)
    answer = plain.completions.create(model=place.model, prompt="The fox", **GREEDY)
    assert scored.scores(answer.id).text.startswith("The fox")


def test_a_look_up_that_finds_nothing_says_why(client: ScoredOpenAI, place: Place) -> None:
    for id in ("chatcmpl-none", "../info", "a/b?c#d", "\n", "é"):
        with pytest.raises(ScoresNotFound):
            client.scores(id)
    with pytest.raises(ScoresNotFound, match="expected the id of a response"):
        client.scores("")
    with pytest.raises(ScoresError, match=r"expected an actscope gateway.*ends in /v1"):
        scored.scores("chatcmpl-1", base_url=f"{place.url}/v2", api_key=place.token)
    with pytest.raises(openai.AuthenticationError):
        scored.scores("chatcmpl-1", base_url=f"{place.url}/v1", api_key="wrong-token")
    with pytest.raises(openai.BadRequestError, match="computes no features"):
        found = client.completions.create(model=place.model, prompt="The fox", **GREEDY)
        client.scores(found.id, features=True)


def test_refusals_of_the_gateway_are_openais_errors(client: ScoredOpenAI, place: Place) -> None:
    with pytest.raises(openai.BadRequestError, match="unknown probe 'nope'") as refused:
        client.chat.completions.create(model=place.model, messages=MESSAGES, actscope={"probes": ["nope"]})
    assert not hasattr(refused.value, "__notes__")


def test_wrap_refuses_what_it_does_not_know() -> None:
    with pytest.raises(SettingsError, match="found probe"):
        wrap(openai.OpenAI(api_key="x"), probe=["danger"])  # type: ignore[call-overload]
    with pytest.raises(SettingsError, match="found str"):
        wrap("http://127.0.0.1:6969")  # type: ignore[call-overload]


# Servers that are no gateway, or break off. They are stand-ins: fixed answers over a real socket.


@contextmanager
def answering(status: int, kind: str, body: bytes) -> Iterator[ScoredOpenAI]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="x", max_retries=0) as client:
            yield wrap(client)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


CHOICE: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
ANSWER: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [CHOICE]}


def chunk(**choice: Any) -> bytes:
    whole = ANSWER | {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}} | choice]}
    return b"data: " + json.dumps(whole).encode() + b"\n\n"


STREAM = "text/event-stream"
HEADED = {"v": 1, "request": "1", "prompt_tokens": 0, "probes": [], "tokens": {"start": 0, "ids": [5], "text": ["a"]}}


def test_a_server_that_ignores_the_field_is_no_gateway() -> None:
    """Whole, streamed (after its last chunk, so that the text is not lost), as a page, and when an id is looked up."""
    with answering(200, "application/json", json.dumps(ANSWER).encode()) as client:
        with pytest.raises(ScoresError, match=r"has no scores: expected an actscope gateway.*--upstream"):
            client.chat.completions.create(model="m", messages=MESSAGES)
        with pytest.raises(ScoresError, match="payload"):
            client.scores("chatcmpl-1")
        assert client.chat.completions.create(model="m", messages=MESSAGES, actscope=False).choices
    said = []
    events = chunk() + chunk(finish_reason="stop") + b"data: [DONE]\n\n"
    with answering(200, STREAM, events) as client, pytest.raises(ScoresError, match="has no scores"):
        for found in client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
            said.append(found.choices[0].delta.content)
    assert said == ["a"]
    with answering(200, "text/html", b"<html>") as client:
        with pytest.raises(ScoresError, match="has no scores"):
            client.chat.completions.create(model="m", messages=MESSAGES)
        with pytest.raises(ScoresError, match="no JSON object"):
            client.scores("chatcmpl-1")


def test_a_server_that_refuses_the_field_is_no_gateway() -> None:
    """OpenAI's own error, with a note of what to do."""
    body = {"error": {"message": "Unrecognized request argument supplied: actscope", "param": None, "code": None}}
    refusing = answering(400, "application/json", json.dumps(body).encode())
    with refusing as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="m", messages=MESSAGES)
    assert "expected an actscope gateway" in refused.value.__notes__[0]


@pytest.mark.parametrize("chunks", [b"", chunk(actscope=HEADED)], ids=["empty", "half"])
def test_a_stream_that_is_cut_off_is_no_whole_one(chunks: bytes) -> None:
    """OpenAI's client ends quietly when a connection closes in mid-stream."""
    with answering(200, STREAM, chunks) as client, pytest.raises(ScoresError, match="ended before the last payload"):
        list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True).tokens())


def test_importing_actscope_does_not_import_openai() -> None:
    code = "import sys, actscope, actscope.client; print('openai' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_without_openai_the_error_has_the_install_line() -> None:
    code = "import sys; sys.modules['openai'] = None; import actscope; actscope.client.wrap"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra: this needs openai, which is not installed: pip install 'actscope[client]'" in done.stderr
