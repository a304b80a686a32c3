"""All settings of the gateway, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from actscope.errors import SettingsError
from actscope.near_miss import hinted_class
from actscope.serving.settings import ServingSettings

#: Directory of the built scope page.
STATIC = Path(__file__).parent / "static"


@hinted_class
@dataclass(frozen=True, slots=True)
class GatewaySettings(ServingSettings):
    """Address, upstream, limits and memory of the gateway.

    Raises:
        SettingsError: A value is out of range or malformed.
    """

    upstream: str = ""
    """Engine behind the gateway: http://host:port (a vLLM server), a card id, or unix:/path. By default the newest engine on
    this machine that publishes an endpoint."""
    upstream_key: str = field(default="", repr=False)
    """API key of the upstream server. Sent only to that server."""
    otlp_endpoint: str = ""
    """Collector of OpenTelemetry's spans and metrics (OTLP over HTTP), e.g. http://localhost:4318. By default there are none."""
    max_body_bytes: int = 64 * 1024 * 1024
    """Maximum size of a request body."""
    max_in_flight: int = 16384
    """Maximum number of concurrent completions, and of concurrent forwarded requests, which wait in the engine's own queue.
    Further ones are answered with 429."""
    max_streams: int = 128
    """Maximum number of open event streams. Further ones are answered with 429."""
    max_n: int = 8192
    """Maximum `n` (choices for one prompt), and maximum number of choices of all prompts of a request."""
    log_requests: int = 256
    """Number of ended requests to remember."""
    log_positions: int = 1_000_000
    """Number of token positions to remember over all requests (about 150 bytes each with 8 probes)."""
    log_seconds: float = 3600.0
    """Time to remember an ended request."""
    keep_alive_seconds: float = 15.0
    """Idle time after which an event stream gets a `: keep-alive` comment."""
    row_grace_seconds: float = 0.25
    """Time that an ending request waits for rows that the engine has not published yet."""
    retry_after_seconds: int = 2
    """`Retry-After` of the 503 answers while the engine is down."""
    discovery_seconds: float = 0.25
    """Interval between two attempts to find the engine."""

    def __post_init__(self) -> None:
        self.check_serving()
        if any(c.isspace() or not c.isprintable() for c in self.upstream_key):
            raise SettingsError("gateway upstream_key: expected printable characters without blanks")
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise SettingsError(f"gateway otlp_endpoint: expected http://host:port, found {self.otlp_endpoint!r}")
        for name in (
            "max_in_flight",
            "max_streams",
            "max_n",
            "log_requests",
            "log_positions",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"gateway {name}: expected at least 1, found {getattr(self, name)}")
