"""Keyword arguments of `actscope.capture`: the fields of `CaptureConfig`, with the forms in which users may write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypedDict

from actscope.recording.spec import Policy

Direct = Literal["auto", "yes", "no"]


class CaptureSettings(TypedDict, total=False):
    """Fields of `actscope.capture.config.CaptureConfig` to override. Sizes may be strings such as "2GB"."""

    sites: str | Iterable[str | int]
    points: str | Iterable[str]
    granularity: str
    codec: str
    policy: Policy
    memory_bytes: int | str
    workers: int
    block_bytes: int | str
    flush_seconds: float
    checkpoint_tokens: int
    sample: float
    throughput: float | str
    text: bool
    direct: Direct
    segment_bytes: int | str
    reason: str
    memory: int | str
    """Alias of `memory_bytes`."""
    checkpoint: int
    """Alias of `checkpoint_tokens`."""
