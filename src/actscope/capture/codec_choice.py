"""Choice of a codec and a number of workers for a target throughput."""

from __future__ import annotations

import os
from dataclasses import dataclass

#: Encoding speed of one core in GB/s of rows, and expected compression ratio on float32 rows of a real model. Both are rounded
#: down from docs/measured.md (blocks of 4,096 rows). Ordered by compression ratio, highest first.
CODEC_SPEEDS: dict[str, tuple[float, float]] = {
    "error_bounded:1e-3": (0.5, 3.0),
    "lossless": (0.8, 1.15),
    "shuffle_lz4": (0.9, 1.0),
    "none": (5.0, 1.0),
}
#: Assumed speed and ratio of a codec that was not measured.
_UNMEASURED = (0.4, 1.0)


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """A codec, its number of workers (0: the recorder chooses), and the calculation behind them as text."""

    codec: str
    workers: int
    reason: str


def choose_codec(codec: str, workers: int, throughput: float, cores: int = 0) -> CodecChoice:
    """Choose the codec and the number of workers for a target throughput.

    `auto` selects the lossless codec with the best ratio that reaches the target on half of the cores. If none does, it
    selects "none".

    Args:
        codec: Name of a codec, or "auto".
        workers: Number of workers set by the user; 0 if unset.
        throughput: Target in bytes/s of uncompressed rows; 0 for none.
        cores: Number of CPU cores; 0 uses `os.cpu_count()`.

    Returns:
        The choice. Without a target, `codec` and `workers` are returned unchanged.
    """
    if not throughput:
        return CodecChoice(codec, workers, "no target throughput")
    available = max(1, (cores or os.cpu_count() or 1) // 2)
    wanted = throughput / 1e9
    ladder = {codec: CODEC_SPEEDS.get(codec, _UNMEASURED)}
    if codec == "auto":
        ladder = {name: speed for name, speed in CODEC_SPEEDS.items() if not name.startswith("error_bounded")}
    for name, (speed, _) in ladder.items():
        needed = max(1, -int(-wanted // speed))
        if needed <= available or name == list(ladder)[-1]:
            break
    reason = (
        f"{wanted:.2f} GB/s / {speed:g} GB/s a core ({name}) = {needed} worker{'s' * (needed != 1)}, of {available} "
        f"that half of the cores give"
    )
    return CodecChoice(name, workers or min(needed, available), reason)
