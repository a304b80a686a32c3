"""Keyword arguments of the clients, as types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch

Transport = Literal["auto", "near", "http"]


class ClientOptions(TypedDict, total=False):
    """Keyword arguments of `FeedClient`."""

    group: str
    transport: Transport
    timeout: float


class IterOptions(TypedDict, total=False):
    """Keyword arguments of `FeedClient.iter`."""

    sites: str
    device: str | torch.device | None
    prefetch: int
    normalize: bool | float
    drop_last: bool
    zero_copy: bool
