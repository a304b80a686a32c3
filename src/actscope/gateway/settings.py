"""Every setting of the gateway, in one frozen dataclass."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from actscope.errors import SettingsError


def _new_token() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What the gateway listens on, whom it serves, what it sits in front of, and how much it keeps."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 6969
    """Port to listen on; 0 takes a free one."""
    token: str = field(default_factory=_new_token, repr=False)
    """What every client must present; a new random one each start unless given."""
    upstream: str = ""
    """Engine to sit in front of: "" (the newest one running here that says where it takes requests), an engine card's id,
    `unix:/path`, or `http://host:port` (vLLM's server)."""
    upstream_key: str = field(default="", repr=False)
    """API key of the server at `upstream`; sent there and nowhere else."""
    allowed_hosts: tuple[str, ...] = ()
    """`Host` values accepted besides 127.0.0.1, localhost and [::1] with the port."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages on other ports or hosts that may call the gateway, such as `http://localhost:5173`."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Largest request body."""
    max_head_bytes: int = 32 * 1024
    """Largest request line plus headers."""
    max_in_flight: int = 64
    """Completions running at once, and requests of other kinds passed on at once; more are answered with 429."""
    max_streams: int = 128
    """Event streams open at once; more are answered with 429."""
    max_n: int = 16
    """Largest `n` (choices for one prompt)."""
    log_requests: int = 256
    """Requests remembered after they end."""
    log_positions: int = 1_000_000
    """Token positions remembered over all requests (about 100 bytes each with 8 probes)."""
    log_seconds: float = 3600.0
    """How long an ended request is remembered."""
    keep_alive_seconds: float = 15.0
    """Pause after which a quiet event stream gets a `: keep-alive` comment."""
    row_grace_seconds: float = 0.25
    """How long an ending request waits for rows that the engine has not published yet."""
    retry_after_seconds: int = 2
    """`Retry-After` of the 503 sent while the engine is not up."""
    discovery_seconds: float = 0.25
    """Pause between two looks for the engine."""
    shutdown_seconds: float = 5.0
    """How long running completions may go on after a stop is asked for."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"gateway port: expected 0 to 65535, found {self.port}")
        if len(self.token) < 8:
            raise SettingsError(f"gateway token: expected at least 8 characters, found {len(self.token)}")
        if any(c.isspace() or not c.isprintable() for c in self.upstream_key):
            raise SettingsError("gateway upstream_key: expected printable characters without blanks")
        for name in (
            "max_body_bytes",
            "max_head_bytes",
            "max_in_flight",
            "max_streams",
            "max_n",
            "log_requests",
            "log_positions",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"gateway {name}: expected at least 1, found {getattr(self, name)}")
        for origin in self.cors_origins:
            if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise SettingsError(
                    f"gateway CORS origin: expected scheme://host[:port] with no slash after it, found {origin!r}"
                )

    @property
    def hosts(self) -> frozenset[str]:
        """Every accepted `Host` value, in lower case."""
        local = [f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")]
        if self.port == 80:
            local += ["127.0.0.1", "localhost", "[::1]"]
        return frozenset(h.lower() for h in (*local, *self.allowed_hosts))

    @property
    def link(self) -> str:
        """The address to open in a browser; it carries the token."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/?token={self.token}"
