"""Every setting of the gateway, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from actscope.errors import SettingsError
from actscope.serving.settings import ServingSettings


@dataclass(frozen=True, slots=True)
class GatewaySettings(ServingSettings):
    """What the gateway listens on, whom it serves, what it sits in front of, and how much it keeps."""

    upstream: str = ""
    """Engine to sit in front of: "" (the newest one running here that says where it takes requests), an engine card's id,
    `unix:/path`, or `http://host:port` (vLLM's server)."""
    upstream_key: str = field(default="", repr=False)
    """API key of the server at `upstream`; sent there and nowhere else."""
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

    def __post_init__(self) -> None:
        self.check_serving()
        if any(c.isspace() or not c.isprintable() for c in self.upstream_key):
            raise SettingsError("gateway upstream_key: expected printable characters without blanks")
        for name in (
            "max_in_flight",
            "max_streams",
            "max_n",
            "log_requests",
            "log_positions",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"gateway {name}: expected at least 1, found {getattr(self, name)}")
