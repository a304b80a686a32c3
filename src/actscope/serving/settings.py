"""Settings of every server: its address, access control, and size limits of requests."""

from __future__ import annotations

import re
import secrets
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from actscope.errors import SettingsError

#: Form of a host: a name or an address, without scheme, brackets, blanks or port.
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]*")

#: The one path that the token of scrapers opens.
SCRAPED = "/metrics"


def new_token() -> str:
    """Return a random secret of 256 bits."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Address, access control and request limits of a server.

    Raises:
        SettingsError: A value is out of range, or an origin is malformed.
    """

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 accepts connections from other machines: browsers need an allowed `Host`."""
    port: int = 6969
    """Port to listen on. 0 chooses a free port."""
    token: str = field(default_factory=new_token, repr=False)
    """Token that every client must present, at least 8 characters. By default a new random one at each start."""
    scrape_token: str = field(default="", repr=False)
    """Token for Prometheus, at least 8 characters: it opens `GET /metrics` and nothing else. By default only the token does."""
    allowed_hosts: tuple[str, ...] = ()
    """`Host` to accept from browsers besides 127.0.0.1, localhost and [::1] with the port, e.g. my-box:6969. Repeatable."""
    cors_origins: tuple[str, ...] = ()
    """Origin of web pages that may call the API (CORS), e.g. http://localhost:5173. Repeatable."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Maximum size of a request body."""
    max_head_bytes: int = 32 * 1024
    """Maximum size of a request line and its headers."""
    head_seconds: float = 10.0
    """Time that a client has to send the head of a request, from its connection or from the first byte of a later head."""
    body_seconds: float = 60.0
    """Longest silence of a client in the middle of a request's body."""
    max_unauthenticated: int = 4096
    """Maximum number of connections that have not shown the token, and at most a quarter of the files that the process may
    open. The oldest one is closed for a new one."""
    shutdown_seconds: float = 5.0
    """Time that running requests have to finish after a stop signal."""

    def __post_init__(self) -> None:
        self.check_serving()

    def check_serving(self) -> None:
        """Raise SettingsError for a value that is out of range, or a malformed origin."""
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port: expected 0 to 65535, found {self.port}")
        if not _HOST.fullmatch(self.host):
            raise SettingsError(
                f"host: expected an address or a name to listen on, such as 127.0.0.1, or 0.0.0.0 for every address, "
                f"found {self.host!r}"
            )
        if len(self.token) < 8:
            raise SettingsError(f"token: expected at least 8 characters, found {len(self.token)}")
        if self.scrape_token and (len(self.scrape_token) < 8 or self.scrape_token == self.token):
            found = "the token itself" if self.scrape_token == self.token else f"{len(self.scrape_token)}"
            raise SettingsError(f"scrape_token: expected at least 8 characters, other than the token, found {found}")
        for name in ("max_body_bytes", "max_head_bytes", "max_unauthenticated"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("head_seconds", "body_seconds"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name}: expected a number above 0, found {getattr(self, name)}")
        for origin in self.cors_origins:
            if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise SettingsError(
                    f"CORS origin: expected scheme://host[:port] without a trailing slash, found {origin!r}"
                )

    @property
    def hosts(self) -> frozenset[str]:
        """Return every accepted `Host` value, in lower case."""
        local = [f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")]
        if self.port == 80:
            local += ["127.0.0.1", "localhost", "[::1]"]
        return frozenset(h.lower() for h in (*local, *self.allowed_hosts))

    @property
    def url(self) -> str:
        """Return the URL for clients on this machine."""
        address = _address(self.host)
        host = self.host if address is None else "127.0.0.1" if address.is_unspecified else str(address)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}"

    @property
    def reach(self) -> str:
        """Return who can connect and what they need, in a sentence; empty if only this machine can."""
        address = _address(self.host)
        if address.is_loopback if address is not None else self.host.lower() == "localhost":
            return ""
        everywhere = address is not None and address.is_unspecified
        who = "every machine that reaches this one" if everywhere else f"machines that reach {self.host}"
        names = ", ".join(self.allowed_hosts)
        pages = f"browsers under {names}" if names else "no browser elsewhere: add --allow-host NAME:PORT"
        return f"{who}, with the token, which travels unencrypted; {pages}"

    @property
    def link(self) -> str:
        """Return the URL to open in a browser. It contains the token."""
        return f"{self.url}/?token={self.token}"


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is written as, or None for a name. IPv6 forms of IPv4 addresses are IPv4 addresses.

    Sockets also take the forms of `inet_aton`: "0" is 0.0.0.0, and "127.1" is 127.0.0.1.
    """
    try:
        found = ip_address(host)
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found
