"""Stateless, deterministic sampling of requests by a hash of their ids."""

from __future__ import annotations

from hashlib import blake2b

from actscope.errors import SettingsError


def keeps(request_id: str, rate: float, salt: str = "") -> bool:
    """Return whether a request belongs to the sample of the share `rate`.

    The 64-bit BLAKE2b hash of the id, keyed by the first 64 bytes of `salt`, is compared with `rate * 2^64`. There is no
    state, so processes, restarts and replays agree, and a sample is a subset of every larger one with the same salt.

    Args:
        request_id: Id of the request.
        rate: Share of requests to keep, 0 to 1.
        salt: Selects one of many independent samples.

    Returns:
        True if the request is kept.

    Raises:
        SettingsError: `rate` is outside 0 to 1.
    """
    if not 0.0 <= rate <= 1.0:
        raise SettingsError(f"sample rate {rate}: expected a share of requests between 0 and 1")
    digest = blake2b(request_id.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") < round(rate * 2**64)
