"""Every error that actscope raises on purpose.

    ActscopeError
    ├── MissingExtra        (ImportError)      an optional part is not installed
    ├── SettingsError       (ValueError)       a setting that cannot be understood or met
    ├── SiteError           (ValueError)       a site that this model does not have, or bad site grammar
    ├── ProbeError          (ValueError)       a probe file that is malformed or does not fit the model
    ├── RingError           (OSError)          shared memory that is absent, foreign, malformed or gone
    │   └── RingClosed                         the writer closed the ring, or died
    ├── CodecError          (ValueError)       a codec that does not exist, or a payload that cannot be decoded
    ├── RecordingError      (OSError)          a recording that cannot be made, opened, read or written
    │   ├── RecordingDamaged                   bytes that were acknowledged are missing or changed
    │   └── RecordingPoisoned                  a write or fsync failed: nothing more is promised by this writer
    ├── EngineError         (RuntimeError)     the engine cannot run this model, or has failed
    │   └── RequestRefused  (ValueError)       one request that the engine cannot take
    ├── FeedError           (RuntimeError)     the feed cannot give rows
    │   ├── FeedNotReady                       not yet: ask again
    │   └── FeedEnded                          no more: all epochs have been served
    ├── HarvestError        (OSError)          a harvest that cannot be made, shared or opened, or storage that fails it
    │   └── HarvestDamaged                     what was committed is missing or changed
    └── UpstreamError       (ConnectionError)  the engine behind the gateway does not answer

A message says where, what was expected, what was found, and what to do.
"""

from __future__ import annotations


class ActscopeError(Exception):
    """Base of all errors that actscope raises on purpose."""


class MissingExtra(ActscopeError, ImportError):
    """An optional part is not installed; the message is the install line."""

    def __init__(self, extra: str, needs: str) -> None:
        self.extra = extra
        super().__init__(f"this needs {needs}, which is not installed: pip install 'actscope[{extra}]'")


class SettingsError(ActscopeError, ValueError):
    """A setting that cannot be understood or met."""


class SiteError(ActscopeError, ValueError):
    """A site that this model does not have, or bad site grammar."""


class ProbeError(ActscopeError, ValueError):
    """A probe that is malformed or does not fit the model."""


class RingError(ActscopeError, OSError):
    """Shared memory that is absent, foreign or malformed."""


class RingClosed(RingError):
    """The writer closed the ring, or died."""


class CodecError(ActscopeError, ValueError):
    """A codec that does not exist, a parameter that it does not take, or a payload that cannot be decoded."""


class RecordingError(ActscopeError, OSError):
    """A recording that cannot be made, opened, read or written."""


class RecordingDamaged(RecordingError):
    """Bytes that were acknowledged are missing or changed."""


class RecordingPoisoned(RecordingError):
    """A write or an fsync failed: this writer promises nothing more, and what it had acknowledged stays."""


class EngineError(ActscopeError, RuntimeError):
    """The engine cannot run this model, or has failed."""


class RequestRefused(EngineError, ValueError):
    """One request that the engine cannot take.

    `param` names the offending field of the request and `code` the OpenAI error code, where there is one.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.param = param
        self.code = code
        super().__init__(message)


class FeedError(ActscopeError, RuntimeError):
    """The feed cannot give rows."""


class FeedNotReady(FeedError):
    """There are not so many rows yet; `available` are there. Ask again after `retry_after` seconds."""

    def __init__(self, message: str, available: int = 0, retry_after: float = 1.0) -> None:
        self.available = available
        self.retry_after = retry_after
        super().__init__(message)


class FeedEnded(FeedError):
    """All epochs have been served: there will be no more rows."""


class HarvestError(ActscopeError, OSError):
    """A harvest that cannot be made, shared or opened, or storage that fails it."""


class HarvestDamaged(HarvestError):
    """What was committed is missing or changed."""


class UpstreamError(ActscopeError, ConnectionError):
    """The engine behind the gateway does not answer."""
