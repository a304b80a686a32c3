"""What is to be said of any server: where it listens, who may ask, how much they may send."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from actscope.errors import SettingsError


def new_token() -> str:
    """A secret of 256 bits."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Where a server listens, and whom it serves."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 6969
    """Port to listen on; 0 takes a free one."""
    token: str = field(default_factory=new_token, repr=False)
    """What every client must present; a new random one each start unless given."""
    allowed_hosts: tuple[str, ...] = ()
    """`Host` values accepted besides 127.0.0.1, localhost and [::1] with the port."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages on other ports or hosts that may call the server, such as `http://localhost:5173`."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Largest request body."""
    max_head_bytes: int = 32 * 1024
    """Largest request line plus headers."""
    shutdown_seconds: float = 5.0
    """How long requests that run may go on after a stop is asked for."""

    def __post_init__(self) -> None:
        self.check_serving()

    def check_serving(self) -> None:
        """Raises SettingsError for what a server cannot be."""
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port: expected 0 to 65535, found {self.port}")
        if len(self.token) < 8:
            raise SettingsError(f"token: expected at least 8 characters, found {len(self.token)}")
        for name in ("max_body_bytes", "max_head_bytes"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for origin in self.cors_origins:
            if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise SettingsError(
                    f"CORS origin: expected scheme://host[:port] with no slash after it, found {origin!r}"
                )

    @property
    def hosts(self) -> frozenset[str]:
        """Every accepted `Host` value, in lower case."""
        local = [f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")]
        if self.port == 80:
            local += ["127.0.0.1", "localhost", "[::1]"]
        return frozenset(h.lower() for h in (*local, *self.allowed_hosts))

    @property
    def url(self) -> str:
        """Where clients on this machine find it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}"

    @property
    def link(self) -> str:
        """The address to open in a browser; it carries the token."""
        return f"{self.url}/?token={self.token}"
