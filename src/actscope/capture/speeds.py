"""What codecs cost and give: the figures behind the choice of one for a target throughput."""

from __future__ import annotations

#: GB/s of rows that one core encodes, and the size ratio to expect from fp32 rows of a real model (docs/measured.md, rounded
#: down; blocks of 4,096 rows). Strongest first.
CODEC_SPEEDS: dict[str, tuple[float, float]] = {
    "error_bounded:1e-3": (0.5, 3.0),
    "lossless": (0.8, 1.15),
    "shuffle_lz4": (0.9, 1.0),
    "none": (5.0, 1.0),
}
