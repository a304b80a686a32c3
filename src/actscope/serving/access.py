"""Access control: ASGI middleware around the whole application. It denies a request unless all checks pass.

The checks, in order: size of the head, `Origin` (against other web pages), the token (against all other clients), size of the
body. They also apply to clients on loopback. A browser's cookie counts only under a `Host` on the allow-list (against DNS
rebinding) and for requests that the server's own page makes, or that open it. A bearer token, or the same in `X-Api-Key`, counts
under any `Host`: no web page has it but one that was given it. The token of scrapers counts for `GET /metrics` alone. `HEAD
/health`, and `GET /health` that fails a check, are answered with an empty 200, for orchestrators.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actscope.serving.connections import trust_connection
from actscope.serving.errors import Problem, problem_response
from actscope.serving.settings import SCRAPED, ServingSettings

_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED: Final = "X-Request-Id, Retry-After, " + ", ".join(
    f"X-Actscope-{name}" for name in ("Shape", "Dtype", "Sites", "Position", "Next", "Missed-Rows", "Model")
)
_HEADERS: Final = "Authorization, Content-Type, Last-Event-ID, X-Request-Id"
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_CSP: Final = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE: Final = (
    "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
    "<meta name=color-scheme content='light dark'><title>actscope: open the link from your terminal</title>"
    "<main><h1>Open the link from your terminal</h1>"
    "<p>This page needs a token. When the server started, it printed a link that ends in <code>/?token=…</code>. "
    "Open that link once in this browser; afterwards this address works without it."
    "<p>A restarted server prints a new link, and the old one stops working.</main>"
)


class Guard:
    """ASGI middleware that passes an HTTP request to `app` if it may be served, and answers it with an error otherwise.

    Responses that it sends or passes on get the security headers. WebSocket connections are closed (1008).

    Args:
        app: The application to protect.
        settings: Allow-lists, token and limits. `settings.port` must be the port that clients use: `Host` and the name of
            the cookie depend on it.
    """

    def __init__(self, app: ASGIApp, settings: ServingSettings) -> None:
        self._app = app
        self._settings = settings
        self._hosts = settings.hosts
        self._own_origins = frozenset(f"http://{h}" for h in self._hosts) | frozenset(
            f"https://{h}" for h in settings.allowed_hosts
        )
        self._cors = frozenset(settings.cors_origins)
        self._token = settings.token.encode()
        self._scrape_token = settings.scrape_token.encode()
        self._cookie_name = f"actscope_{settings.port}"
        self._cookie = hmac.new(self._token, b"actscope cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an HTTP request if all checks pass. Pass lifespan events on, and close WebSocket connections."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = self._cross_origin(headers)
        send = _Decorated(send, origin if origin in self._cors else None)
        try:
            self._check_head(headers, scope)
            answer = self._health(scope, headers, origin)
            if answer is None:
                self._check_origin(headers, origin)
                answer = self._preflight(scope, headers, origin) or self._sign_in(scope, headers)
            if answer is None:
                if not self._is_scraper(scope, headers):
                    self._check_token(scope, headers)
                    trust_connection(scope)
                receive = self._bounded(headers, receive)
        except Problem as problem:
            answer = self._page(scope, headers, problem) or problem_response(problem)
            answer.headers["Connection"] = "close"  # the rest of its body is not read
        await (answer or self._app)(scope, receive, send)

    def _cross_origin(self, headers: Headers) -> str | None:
        """Return the Origin header, or None if it is absent or the server's own origin."""
        found = headers.getlist("origin")
        if not found or (len(found) == 1 and found[0].lower() in self._own_origins):
            return None
        return ",".join(found)

    def _check_head(self, headers: Headers, scope: Scope) -> None:
        if (
            sum(len(k) + len(v) for k, v in headers.raw) + len(scope.get("query_string", b""))
            > self._settings.max_head_bytes
        ):
            raise Problem(431, f"headers: at most {self._settings.max_head_bytes} bytes", code="headers_too_large")

    def _health(self, scope: Scope, headers: Headers, origin: str | None) -> Response | None:
        """Answer `HEAD /health`, and `GET /health` of a client that may not see more: 200, and nothing else. None otherwise.

        Orchestrators and proxies send cookies, Basic auth and origins of their own, which must not make the server look down.
        """
        if scope["path"] != "/health" or scope["method"] not in ("GET", "HEAD"):
            return None
        try:
            self._check_origin(headers, origin)
            self._check_token(scope, headers)
        except Problem:
            return Response()
        return Response() if scope["method"] == "HEAD" else None

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise Problem(
                403,
                "Host is not on the allow-list of this server (setting: allowed hosts). Clients that send "
                "`Authorization: Bearer <token>` need no entry in it",
                code="host_not_allowed",
            )

    def _check_origin(self, headers: Headers, origin: str | None) -> None:
        if origin is not None and origin not in self._cors:
            raise Problem(
                403, "Origin is not on the CORS list of this server (setting: CORS origins)", code="origin_not_allowed"
            )

    def _preflight(self, scope: Scope, headers: Headers, origin: str | None) -> Response | None:
        """Return the answer to a CORS preflight, or None if this is not one. A preflight carries no token."""
        if scope["method"] != "OPTIONS" or origin is None or "access-control-request-method" not in headers:
            return None
        allow = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Allow-Headers": _allowed_headers(headers)}
        return Response(status_code=204, headers=allow | {"Access-Control-Max-Age": "600"})

    def _sign_in(self, scope: Scope, headers: Headers) -> Response | None:
        """Answer `GET /?token=…`: set the cookie and redirect to the page. Other query parameters are kept. None otherwise."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return None
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        given = asked.pop("token", None)
        if not given:
            return None
        self._check_host(headers)
        if not hmac.compare_digest(given[0].encode(), self._token):
            raise _unauthorized("wrong token in the address: open the link that the server printed at its last start")
        view = urlencode(asked, doseq=True)
        response = RedirectResponse(f"./?{view}" if view else "./", 303)  # relative: a proxy may have added a path
        response.set_cookie(self._cookie_name, self._cookie, path="/", httponly=True, samesite="lax")
        return response

    def _is_scraper(self, scope: Scope, headers: Headers) -> bool:
        """Return whether this is a scrape with the token of scrapers. Raise Problem (403) for any other request with it."""
        bearers = _bearers(headers)
        if not self._scrape_token or not any(hmac.compare_digest(one.encode(), self._scrape_token) for one in bearers):
            return False
        alone = len(headers.getlist("authorization")) == 1 and "x-api-key" not in headers
        if not alone or scope["path"] != SCRAPED or scope["method"] != "GET":
            raise Problem(403, f"this token is for scrapers: it opens GET {SCRAPED} alone", code="scrape_only")
        return True

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        given = headers.getlist("authorization")
        bearers = _bearers(headers)
        keys = headers.getlist("x-api-key")  # of Anthropic's clients
        if bearers or keys:
            alone = (not bearers or len(given) == 1) and len(keys) < 2
            if not alone or not all(hmac.compare_digest(one.encode(), self._token) for one in (*bearers, *keys)):
                raise _unauthorized("wrong token: use the one that the server printed when it started")
            return
        self._check_host(headers)
        if not any(hmac.compare_digest(value, self._cookie.encode()) for value in _cookies(headers, self._cookie_name)):
            raise _unauthorized(
                "no token: send `Authorization: Bearer <token>` (`api_key` in clients of OpenAI and Anthropic)"
            )
        _check_own_page(scope, headers)

    def _page(self, scope: Scope, headers: Headers, problem: Problem) -> Response | None:
        """Return an HTML page for a browser that opens `/` without a valid token; None in all other cases."""
        if problem.status_code != 401 or scope["path"] != "/" or "text/html" not in headers.get("accept", ""):
            return None
        return HTMLResponse(_PAGE, 401)

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        """Wrap `receive` so that it raises a 413 once the body exceeds the limit, even if Content-Length was smaller.

        Raises a 413 immediately if Content-Length is above the limit or not a number.
        """
        limit = self._settings.max_body_bytes
        announced = headers.get("content-length", "0")
        if not announced.isdigit() or int(announced[:18]) > limit:
            raise _too_large(limit)
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        return bounded


class _Decorated:
    """Wrapper of `send` that adds the security headers, and the CORS headers if `origin` is set."""

    def __init__(self, send: Send, origin: str | None) -> None:
        self._send = send
        self._origin = origin

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            self._add(MutableHeaders(scope=message))
        await self._send(message)

    def _add(self, headers: MutableHeaders) -> None:
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Content-Security-Policy"] = _CSP
        headers["Cross-Origin-Resource-Policy"] = "same-origin" if self._origin is None else "cross-origin"
        headers.setdefault("Cache-Control", "no-store")
        if headers.get("content-type", "").startswith("text/event-stream"):
            headers["X-Accel-Buffering"] = "no"
        headers.add_vary_header("Origin")
        if self._origin is not None:
            headers["Access-Control-Allow-Origin"] = self._origin
            headers["Access-Control-Expose-Headers"] = _EXPOSED


def _bearers(headers: Headers) -> list[str]:
    given = [line.partition(" ") for line in headers.getlist("authorization")]
    return [token.strip() for scheme, _, token in given if scheme.lower() == "bearer"]


def _unauthorized(message: str) -> Problem:
    return Problem(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _too_large(limit: int) -> Problem:
    return Problem(
        413, f"the body is too large: at most {limit} bytes", code="body_too_large", headers={"Connection": "close"}
    )


def _allowed_headers(headers: Headers) -> str:
    """Return the value of Access-Control-Allow-Headers: those that are asked for. Only origins on the CORS list get it."""
    asked = [h.strip() for h in headers.get("access-control-request-headers", "").split(",")]
    return ", ".join([_HEADERS, *(h for h in asked if _HEADER_NAME.fullmatch(h))])


def _cookies(headers: Headers, name: str) -> list[bytes]:
    """Return the values of the cookies of this name. Takes time linear in the headers' size, whatever other cookies hold."""
    wanted = f"{name}="
    pairs = (pair.strip() for line in headers.getlist("cookie") for pair in line.split(";"))
    return [pair.removeprefix(wanted).encode() for pair in pairs if pair.startswith(wanted)]


def _check_own_page(scope: Scope, headers: Headers) -> None:
    """Raise Problem (403) for a request with a cookie that a page of another origin makes; browsers say which by Fetch Metadata.

    Pages on other ports of this host share its cookies. A link elsewhere may open the page itself.
    """
    site = headers.get("sec-fetch-site", "none")
    opens = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET" and scope["path"] == "/"
    if site not in ("same-origin", "none") and not opens:
        raise Problem(
            403, "this request comes from another web page: it needs `Authorization: Bearer <token>`", code="cross_site"
        )
