"""Every error that actscope raises on purpose.

    ActscopeError
    ├── MissingExtra        (ImportError)      an optional part is not installed
    ├── SettingsError       (ValueError)       a setting that is invalid or cannot be satisfied
    │   └── UnknownArgument (TypeError)        a call with a keyword that it does not have
    ├── SiteError           (ValueError)       a site that this model does not have, or a malformed selection
    ├── ProbeError          (ValueError)       a probe file that is malformed or does not fit the model
    ├── RingError           (OSError)          shared memory that is missing, not ours, malformed or removed
    │   └── RingClosed                         this reader has been closed
    ├── CodecError          (ValueError)       an unknown codec, or a payload that cannot be decoded
    ├── RecordingError      (OSError)          a recording that cannot be created, opened, read or written
    │   ├── RecordingDamaged                   acknowledged bytes are missing or changed
    │   └── RecordingPoisoned                  a write or fsync failed: this writer guarantees nothing more
    ├── EngineError         (RuntimeError)     the engine cannot run this model, or has failed
    │   └── RequestRefused  (ValueError)       the engine rejected one request
    ├── FeedError           (RuntimeError)     the feed cannot deliver rows
    │   ├── FeedNotReady                       too few rows are ready: retry later
    │   └── FeedEnded                          end of the feed: all epochs have been served
    ├── HarvestError        (OSError)          a harvest that cannot be created, shared or opened, or its storage failed
    │   └── HarvestDamaged                     committed data is missing or changed
    ├── MetricsError        (OSError)          the machine cannot be measured so, or a file of measurements is malformed
    ├── ScoresError         (RuntimeError)     a server that sends no scores, or malformed or incomplete ones
    │   └── ScoresNotFound  (LookupError)      no such request, choice or probe
    └── UpstreamError       (ConnectionError)  the engine behind the gateway does not answer

A message names the place, the expected value, the value found, and the remedy.
"""

from __future__ import annotations


class ActscopeError(Exception):
    """Base of all errors that actscope raises on purpose."""


class MissingExtra(ActscopeError, ImportError):
    """Dependencies are not installed. The message contains the install line.

    `extra` is the extra that installs them, several separated by commas; "" for the package without extras.
    """

    def __init__(self, extra: str, *needs: str) -> None:
        self.extra = extra
        are = "is" if len(needs) == 1 else "are"
        listed = needs if len(needs) <= 5 else (*needs[:4], f"{len(needs) - 4} more packages")
        named = " and ".join(filter(None, (", ".join(listed[:-1]), listed[-1])))
        what = f"'actscope[{extra}]'" if extra else "actscope"
        super().__init__(f"this needs {named}, which {are} not installed: pip install {what}")


class SettingsError(ActscopeError, ValueError):
    """A setting that is invalid or cannot be satisfied."""


class UnknownArgument(SettingsError, TypeError):
    """A call with a keyword that it does not have. The message suggests the one that was meant."""


class SiteError(ActscopeError, ValueError):
    """A site that this model does not have, or a malformed selection of sites."""


class ProbeError(ActscopeError, ValueError):
    """A probe that is malformed or does not fit the model."""


class RingError(ActscopeError, OSError):
    """Shared memory or a runtime file that is missing, not ours, malformed or removed."""


class RingClosed(RingError):
    """A read from a ring after its reader was closed."""


class CodecError(ActscopeError, ValueError):
    """An unknown codec, an invalid parameter of a codec, or a payload that cannot be decoded."""


class RecordingError(ActscopeError, OSError):
    """A recording that cannot be created, opened, read or written."""


class RecordingDamaged(RecordingError):
    """Acknowledged bytes are missing or changed."""


class RecordingPoisoned(RecordingError):
    """A write or an fsync failed. This writer guarantees nothing more; the data that it had acknowledged stays."""


class EngineError(ActscopeError, RuntimeError):
    """The engine cannot run this model, or has failed."""


class RequestRefused(EngineError, ValueError):
    """The engine rejected one request.

    Attributes:
        param: The offending field of the request, or None.
        code: The OpenAI error code, or None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.param = param
        self.code = code
        super().__init__(message)


class FeedError(ActscopeError, RuntimeError):
    """The feed cannot deliver rows."""


class FeedNotReady(FeedError):
    """Fewer rows are ready than were asked for.

    Attributes:
        available: Number of rows that are ready.
        retry_after: Seconds to wait before the next attempt.
    """

    def __init__(self, message: str, available: int = 0, retry_after: float = 1.0) -> None:
        self.available = available
        self.retry_after = retry_after
        super().__init__(message)


class FeedEnded(FeedError):
    """End of the feed: all epochs have been served, and no more rows will come."""


class HarvestError(ActscopeError, OSError):
    """A harvest that cannot be created, shared or opened, or whose storage failed."""


class HarvestDamaged(HarvestError):
    """Committed data of a harvest is missing or changed."""


class MetricsError(ActscopeError, OSError):
    """The kernel or the machine cannot be measured in this way, or a file of measurements is malformed."""


class ScoresError(ActscopeError, RuntimeError):
    """A server sends no scores, or malformed or incomplete ones."""


class ScoresNotFound(ScoresError, LookupError):
    """There is no request, choice or probe of this name."""


class UpstreamError(ActscopeError, ConnectionError):
    """The engine behind the gateway does not answer."""
