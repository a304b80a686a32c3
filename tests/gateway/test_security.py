"""Who may ask: nobody without the token, on any route, from any page, under any name of the host."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from support.gateway.stage import TOKEN, EngineProcess, Place, Stage, chat
from support.waiting import until

ROUTES = [
    ("GET", "/"),
    ("GET", "/index.html"),
    ("GET", "/assets/x.js"),
    ("POST", "/health"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/actscope/info"),
    ("GET", "/v1/actscope/probes"),
    ("PUT", "/v1/actscope/probes/x"),
    ("DELETE", "/v1/actscope/probes/x"),
    ("GET", "/v1/actscope/requests"),
    ("GET", "/v1/actscope/requests/x"),
    ("DELETE", "/v1/actscope/requests/x"),
    ("GET", "/v1/actscope/requests/x/events"),
    ("GET", "/no/such/path"),
    ("OPTIONS", "/v1/models"),
]


@pytest.fixture
def stranger(place: Place) -> Iterator[httpx.Client]:
    """A client without a token."""
    with httpx.Client(base_url=place.url, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong-token-wrong", f"Basic {TOKEN}", "Bearer", "Bearer é"])
def test_every_route_needs_the_token(stranger: httpx.Client, method: str, path: str, authorization: str | None) -> None:
    """No token, a wrong one or a malformed one is 401 everywhere, unknown paths included."""
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    answer = stranger.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert TOKEN not in answer.text


def test_the_printed_link_sets_a_cookie_that_serves_as_the_token(stranger: httpx.Client, place: Place) -> None:
    """It redirects to the page, under whatever path, without the token in the address. The cookie then opens every route."""
    answer = stranger.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie = answer.headers["set-cookie"]
    port = place.url.rsplit(":", 1)[1]
    assert cookie.startswith(f"actscope_{port}=")
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert TOKEN not in cookie
    assert stranger.get("/v1/actscope/info").status_code == 200
    stranger.cookies.clear()
    stranger.cookies.set(f"actscope_{port}", "0" * 64)
    assert stranger.get("/v1/actscope/info").status_code == 401


def test_a_wrong_link_sets_no_cookie(stranger: httpx.Client) -> None:
    """A person's browser gets words, and nothing to come back with."""
    answer = stranger.get("/?token=wrong-token", headers={"accept": "text/html"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "open the link" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:6969", ""])
def test_a_browser_under_a_foreign_host_is_refused(stranger: httpx.Client, host: str) -> None:
    """DNS rebinding: neither the cookie nor the link help under a wrong name."""
    stranger.get(f"/?token={TOKEN}")
    for path in ("/v1/actscope/info", f"/?token={TOKEN}"):
        answer = stranger.get(path, headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["my-box:6969", "gateway.default.svc", "10.0.0.7"])
def test_a_bearer_token_counts_under_any_host(client: httpx.Client, host: str) -> None:
    """A service in a cluster is called by many names, and no web page has the token."""
    assert client.get("/v1/actscope/info", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": TOKEN}, 200),
        ({"x-api-key": TOKEN, "Host": "scope.example.org"}, 200),
        ({"x-api-key": TOKEN, "Authorization": "Basic YTpi"}, 200),
        ({"x-api-key": TOKEN, "Authorization": f"Bearer {TOKEN}"}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": TOKEN, "Authorization": "Bearer wrong"}, 401),
        ({"x-api-key": "wrong", "Authorization": f"Bearer {TOKEN}"}, 401),
    ],
)
def test_the_token_may_come_as_anthropics_clients_send_it(
    stranger: httpx.Client, headers: dict[str, str], status: int
) -> None:
    """As `X-Api-Key`; where both are there, both must be right."""
    assert stranger.get("/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize("host", ["10.0.0.7:6969", "127.0.0.1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_needs_no_token_and_says_nothing(stranger: httpx.Client, method: str, host: str) -> None:
    answer = stranger.request(method, "/health", headers={"host": host})
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    "headers",
    [
        {"cookie": "other=1"},
        {"authorization": "Basic eDp5"},
        {"authorization": "Bearer wrong-token"},
        {"x-api-key": "wrong-token"},
        {"origin": "http://evil.example"},
        {"origin": "http://evil.example", "authorization": f"Bearer {TOKEN}"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_an_empty_200_whatever_credentials_come(
    stranger: httpx.Client, method: str, headers: dict[str, str]
) -> None:
    """Proxies and browsers add their own: before, they made a running server look down (401, 403)."""
    answer = stranger.request(method, "/health", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"")
    assert "access-control-allow-origin" not in answer.headers


def test_head_of_health_with_the_token_is_200(client: httpx.Client) -> None:
    """Before, it was 404."""
    assert client.head("/health").status_code == 200
    assert client.get("/health").json()["engine"] == "up"


@pytest.mark.parametrize("other", ["a=b", "bad name=1", 'x="unclosed', "=; ;", "\x80=\x80", "expires=Thu, 01 Jan 1970"])
def test_cookies_of_other_applications_on_this_host_do_no_harm(
    stranger: httpx.Client, place: Place, other: str
) -> None:
    stranger.get(f"/?token={TOKEN}")
    own = "; ".join(f"{name}={value}" for name, value in stranger.cookies.items())
    stranger.cookies.clear()
    for line, status in ((f"{other}; {own}", 200), (f"{own}; {other}", 200), (other, 401)):
        headers = [(b"cookie", line.encode("latin-1"))]
        assert stranger.get("/v1/actscope/info", headers=headers).status_code == status


def test_a_proxys_own_authorization_does_not_hide_the_cookie(stranger: httpx.Client) -> None:
    stranger.get(f"/?token={TOKEN}")
    assert stranger.get("/v1/actscope/info", headers={"authorization": "Basic dTpw"}).status_code == 200
    assert stranger.get("/v1/actscope/info", headers={"authorization": "Bearer wrong-one"}).status_code == 401


@pytest.mark.parametrize("cookie", ['a="' * 10_000, "a=\\" * 8_000, ('"' + "\\" * 7) * 4_000, "=;" * 15_000])
def test_a_hostile_cookie_costs_no_time(place: Place, stranger: httpx.Client, cookie: str) -> None:
    """Python's own parser of cookies takes seconds for these. A hundred of them are answered while the clock still runs."""
    with httpx.Client(base_url=place.url, trust_env=False, timeout=10) as attacker:
        for _ in range(100):
            assert attacker.get("/v1/models", headers={"cookie": cookie[:31_000]}).status_code == 401


@pytest.mark.parametrize("site", ["same-site", "cross-site"])
def test_the_cookie_does_not_serve_the_pages_of_others(stranger: httpx.Client, site: str) -> None:
    """A page on another port of this host has its cookies. A link in it may open the page of the scope, and no more."""
    stranger.get(f"/?token={TOKEN}")
    metadata = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
    answer = stranger.get("/v1/actscope/info", headers=metadata)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
    opened = metadata | {"sec-fetch-mode": "navigate"}
    assert stranger.get("/v1/actscope/info", headers=opened).status_code == 403
    assert stranger.get("/", headers=opened).status_code == 200
    own = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    assert stranger.get("/v1/actscope/info", headers=own).status_code == 200


def test_the_connection_of_a_refused_body_is_closed(place: Place) -> None:
    """What is sent after the 401, trailers without end among it, is not read."""
    host, port = place.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sender:
        head = f"POST /v1/models HTTP/1.1\r\nhost: {host}:{port}\r\ntransfer-encoding: chunked\r\n\r\n"
        sender.sendall(head.encode() + b"0\r\n")
        assert sender.recv(100).startswith(b"HTTP/1.1 401")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            for i in range(3_000):
                sender.sendall(f"x-{i}: {'x' * 60_000}\r\n".encode())


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_foreign_origin_is_refused(client: httpx.Client, origin: str) -> None:
    """A web page elsewhere cannot use the cookie or a token that it has got hold of."""
    answer = client.get("/v1/actscope/info", headers={"origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers


def test_the_gateways_own_origin_is_accepted(client: httpx.Client, place: Place) -> None:
    """Its own page sends an Origin with each POST."""
    assert client.get("/v1/actscope/info", headers={"origin": place.url}).status_code == 200


def test_origins_on_the_list_get_cors(stage: Stage) -> None:
    """A page on another port may ask, with the token, once its origin is on the list."""
    place = stage.gateway(up=False, cors_origins=["http://localhost:5173"])
    origin = {"origin": "http://localhost:5173"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}
    with httpx.Client(base_url=place.url, trust_env=False) as page:
        preflight = page.options("/v1/chat/completions", headers=origin | asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "http://localhost:5173"
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        refused = page.get("/v1/models", headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "http://localhost:5173"
        allowed = page.get("/health", headers=origin | {"authorization": f"Bearer {place.token}"})
        assert allowed.json() == {"status": "ok", "engine": "waiting"}
        assert page.options("/health", headers={"origin": "http://evil.example"} | asked).status_code == 403


def test_a_browser_without_the_token_gets_a_document_that_says_what_to_do(stranger: httpx.Client) -> None:
    """It has a language, a heading and a main part, for screen readers too, and is as readable in the dark."""
    answer = stranger.get("/", headers={"accept": "text/html"})
    assert answer.status_code == 401
    for part in (
        "<html lang=en>",
        "<main><h1>Open the link from your terminal</h1>",
        "name=color-scheme",
        "name=viewport",
    ):
        assert part in answer.text


def test_the_page_travels_compressed(client: httpx.Client) -> None:
    """Its script is a third of its size on the wire, kept by browsers for ever, and plain for who does not ask."""
    script = re.findall(r"assets/[\w.-]+\.js", client.get("/").text)[0]
    packed = client.get(f"/{script}", headers={"accept-encoding": "gzip"})
    plain = client.get(f"/{script}", headers={"accept-encoding": "identity"})
    assert (packed.headers["content-encoding"], packed.headers.get("vary")) == ("gzip", "Accept-Encoding, Origin")
    assert "immutable" in packed.headers["cache-control"]
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content
    assert packed.num_bytes_downloaded < plain.num_bytes_downloaded / 2


def test_pages_may_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    """Security headers are on every answer."""
    for path in ("/", "/v1/actscope/info", "/no/such/path"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.fixture
def small(stage: Stage) -> Place:
    return stage.gateway(up=False, max_body_bytes=1000)


def test_a_body_that_announces_too_much_is_refused(small: Place) -> None:
    """By its Content-Length."""
    with small.client() as client:
        answer = client.post("/v1/chat/completions", json=chat(content="x" * 1000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_without_an_announced_length_is_cut_off(small: Place) -> None:
    """By what has come, long before its end."""
    with small.client() as client:
        answer = client.post(
            "/v1/chat/completions",
            content=(b"x" * 100 for _ in range(50)),
            headers={"content-type": "application/json"},
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_heads_are_bounded(place: Place, client: httpx.Client) -> None:
    """Large headers are refused, and endless ones cut off."""
    assert client.get("/health", headers={"x-large": "x" * 40_000}).status_code in (400, 431)
    host, port = place.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nx-endless: ")
        received = b""
        try:
            for _ in range(2000):
                endless.sendall(b"x" * 1024)
        except OSError:
            received = b"closed"
        assert received or endless.recv(100).startswith(b"HTTP/1.1 431")


def test_only_listed_headers_reach_the_engine(client: httpx.Client, engine: EngineProcess) -> None:
    """Neither the token nor cookies nor a chosen request id go further."""
    headers = {"cookie": "a=b", "x-request-id": "mine", "x-forwarded-for": "1.2.3.4", "traceparent": "00-1-2-03"}
    answer = client.post("/v1/chat/completions", json=chat(max_tokens=1), headers=headers)
    seen = {k.lower(): v for k, v in engine.state()["headers"].items()}
    assert answer.json()["id"] == f"chatcmpl-{seen['x-request-id']}"
    assert seen["x-request-id"] != "mine"
    assert seen["traceparent"] == "00-1-2-03"
    assert not {"authorization", "cookie", "x-forwarded-for"} & set(seen)
    assert TOKEN not in json.dumps(seen)


def test_a_redirect_of_the_engine_is_not_followed(client: httpx.Client) -> None:
    """An engine cannot send the gateway elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/"
        answer = client.post("/v1/chat/completions", json=chat(scripted={"redirect": url}))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")
        with pytest.raises(BlockingIOError):
            trap.accept()


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/static/../../app.py", "//etc/passwd"]
)
def test_files_outside_the_page_are_not_served(place: Place, path: str) -> None:
    """Whatever the path, only the page's own files are there."""
    host, port = place.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.makefile("rb").readline().split()[1] in (b"404", b"400")


def test_the_token_is_not_in_the_gateways_output(stage: Stage) -> None:
    """A crash or a log line cannot show it: the settings do not print it."""
    from actscope.gateway import GatewaySettings

    assert TOKEN not in repr(GatewaySettings(token=TOKEN))


def test_stopping_ends_event_streams_at_once(stage: Stage) -> None:
    """A watcher of a request that hangs does not hold the gateway's end up."""
    engine = stage.engine()
    place = stage.gateway(shutdown_seconds=1)
    process = stage.gateway_process
    with place.client() as own, place.client() as other:
        body = {"stream": True, **chat(max_tokens=4, scripted={"hold_after": 2})}
        with own.stream("POST", "/v1/chat/completions", json=body) as response:
            path = f"/v1/actscope/requests/{response.headers['x-request-id']}/events"
            with other.stream("GET", path) as watching:
                process.terminate()
                watching.read()
            said: list[str] = []
            with suppress(httpx.HTTPError):  # it is cut off, or ends with an error event
                said.extend(response.iter_text())
            assert "[DONE]" not in "".join(said)
    process.wait(10)
    until(lambda: engine.state()["aborted"])
