"""Which requests are kept when only a share of them is wanted: decided by their ids, the same everywhere and always."""

from __future__ import annotations

from hashlib import blake2b

from actscope.errors import SettingsError


def keeps(request_id: str, rate: float, salt: str = "") -> bool:
    """Whether a request is in the sample of `rate` (0 to 1).

    The 64-bit BLAKE2b hash of the id, keyed by the first 64 bytes of `salt`, is compared with `rate`: no state, so
    processes, restarts and replays agree, and what is in a sample is in every larger one of the same salt. Raises
    SettingsError for a rate outside 0 to 1.
    """
    if not 0.0 <= rate <= 1.0:
        raise SettingsError(f"sample rate {rate}: expected a share of requests between 0 and 1")
    digest = blake2b(request_id.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") < round(rate * 2**64)
