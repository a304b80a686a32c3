"""Shard as an Arrow stream: the format that `datasets.load_from_disk` maps, and SAELens reads as cached activations.

One table row for each context:

    <column of a site>   Array2D [context, d]       float32 or float16
    token_ids            int32 [context]
    text_ids             int64 [context]            number of each token's text in the dataset; -1 for tokens of no text
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actscope.errors import MissingExtra, SettingsError
from actscope.harvest.cutting import OwnedPiece
from actscope.harvest.plan import HarvestPlan

if TYPE_CHECKING:
    from torch import Tensor

try:
    import pyarrow as pa
    from datasets import Array2D, Features, Value
    from datasets import Sequence as Fixed
except ImportError as error:
    raise MissingExtra("feed", "datasets") from error

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}


class ArrowShard:
    """Arrow shard that is being written. Each `add` writes one record batch. Holds the file and that batch in memory."""

    suffix = "arrow"

    def __init__(self, plan: HarvestPlan) -> None:
        self._plan = plan
        self._features = features_of(plan)
        self._sink = pa.BufferOutputStream()
        self._writer = pa.ipc.new_stream(self._sink, self._features.arrow_schema)

    def add(self, pieces: Sequence[OwnedPiece], values: dict[str, Tensor]) -> None:
        """Write one record batch with the rows, token ids and text ids of the next contexts."""
        import torch

        dtype = torch.float16 if _stored_dtype(self._plan) == "float16" else torch.float32
        columns = [self._rows(site, values[site].to(dtype).numpy(), len(pieces)) for site in self._plan.sites]
        columns.append(self._tokens(np.stack([owned.piece.token_ids for owned in pieces]).astype(np.int32)))
        columns.append(self._tokens(np.stack([owned.texts for owned in pieces])))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._features.arrow_schema))

    def finish(self) -> memoryview:
        """Close the stream and return the whole file."""
        self._writer.close()
        return memoryview(self._sink.getvalue())

    def _rows(self, site: str, rows: np.ndarray, n: int) -> pa.Array:
        """Return rows [n * context, d] as `n` values of the column's type, without a copy."""
        context, d = self._plan.context, self._plan.d_model
        inner = pa.ListArray.from_arrays(_offsets(n * context, d), pa.array(rows.reshape(-1)))
        outer = pa.ListArray.from_arrays(_offsets(n, context), inner)
        kind = self._features.arrow_schema.field(column_of(site, self._plan)).type
        return pa.ExtensionArray.from_storage(kind, outer)

    def _tokens(self, ids: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), self._plan.context)


def features_of(plan: HarvestPlan) -> Features:
    """Return the columns as `datasets.Features`."""
    dtype, length = _stored_dtype(plan), plan.context
    columns: dict[str, object] = {
        column_of(site, plan): Array2D(shape=(length, plan.d_model), dtype=dtype) for site in plan.sites
    }
    columns["token_ids"] = Fixed(Value("int32"), length=length)
    columns["text_ids"] = Fixed(Value("int64"), length=length)
    return Features(columns)


def column_of(site: str, plan: HarvestPlan) -> str:
    """Return the column name of a site: its own, or that of the TransformerLens hook if the plan wants it and there is one."""
    match = re.fullmatch(r"layers\.(\d+)\.(\w+)", site)
    if plan.columns == "sites" or match is None or match[2] not in _HOOKS:
        return site
    return f"blocks.{match[1]}.{_HOOKS[match[2]]}"


def description(plan: HarvestPlan, names: Sequence[str]) -> dict[str, bytes]:
    """Return the two files that `datasets.load_from_disk` needs to open shards of these names."""
    info = {"citation": "", "description": "", "features": features_of(plan).to_dict(), "homepage": "", "license": ""}
    state: dict[str, object] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": plan.id,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return {"dataset_info.json": _json(info), "state.json": _json(state)}


def check_widths(plan: HarvestPlan) -> None:
    """Raise SettingsError if a record batch of one context would exceed Arrow's 31-bit offsets."""
    if plan.context * plan.d_model >= 1 << 31:
        raise SettingsError(
            f"context {plan.context} of width {plan.d_model}: arrow holds less than 2^31 values per context"
        )


def _stored_dtype(plan: HarvestPlan) -> str:
    return "float16" if plan.dtype == "float16" else "float32"


def _offsets(n: int, width: int) -> pa.Array:
    return pa.array(np.arange(n + 1, dtype=np.int32) * np.int32(width))


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
