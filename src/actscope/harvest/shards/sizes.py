"""Bytes of a row in a shard, for estimates before any row is computed."""

from __future__ import annotations

from actscope.harvest.plan import HarvestPlan
from actscope.harvest.shards.safetensors import LABELS, TYPES

_ARROW_LABELS = 4 + 8  # token_ids int32, text_ids int64


def row_bytes(plan: HarvestPlan) -> int:
    """Return the bytes of one row at all sites of a plan, with its labels.

    Arrow has no bfloat16: such rows are stored as float32.
    """
    arrow = plan.shard_format == "arrow"
    dtype = "float32" if arrow and plan.dtype == "bfloat16" else plan.dtype
    labels = _ARROW_LABELS if arrow else sum(width for _, width in LABELS.values())
    return len(plan.sites) * plan.d_model * TYPES[dtype][1] + labels
