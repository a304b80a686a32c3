"""A shard as an Arrow stream: the files that `datasets.load_from_disk` maps, and SAELens reads as cached activations.

One row a context:

    <column of a site>   Array2D [context, d]       float32 or float16
    token_ids            int32 [context]
    text_ids             int64 [context]            the text of each token in the dataset; -1 where it belongs to none
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
    """Memory: the file, and the batch that is being added. Every `add` becomes one record batch."""

    suffix = "arrow"

    def __init__(self, plan: HarvestPlan) -> None:
        self._plan = plan
        self._features = features_of(plan)
        self._sink = pa.BufferOutputStream()
        self._writer = pa.ipc.new_stream(self._sink, self._features.arrow_schema)

    def add(self, pieces: Sequence[OwnedPiece], values: dict[str, Tensor]) -> None:
        import torch

        dtype = torch.float16 if _stored_dtype(self._plan) == "float16" else torch.float32
        columns = [self._rows(site, values[site].to(dtype).numpy(), len(pieces)) for site in self._plan.sites]
        columns.append(self._tokens(np.stack([owned.piece.token_ids for owned in pieces]).astype(np.int32)))
        columns.append(self._tokens(np.stack([owned.texts for owned in pieces])))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._features.arrow_schema))

    def finish(self) -> memoryview:
        self._writer.close()
        return memoryview(self._sink.getvalue())

    def _rows(self, site: str, rows: np.ndarray, n: int) -> pa.Array:
        """[n * context, d] as `n` values of the column's type, without a copy of the rows."""
        context, d = self._plan.context, self._plan.d_model
        inner = pa.ListArray.from_arrays(_offsets(n * context, d), pa.array(rows.reshape(-1)))
        outer = pa.ListArray.from_arrays(_offsets(n, context), inner)
        kind = self._features.arrow_schema.field(column_of(site, self._plan)).type
        return pa.ExtensionArray.from_storage(kind, outer)

    def _tokens(self, ids: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), self._plan.context)


def features_of(plan: HarvestPlan) -> Features:
    """The columns, as `datasets` describes them."""
    dtype, length = _stored_dtype(plan), plan.context
    columns: dict[str, object] = {
        column_of(site, plan): Array2D(shape=(length, plan.d_model), dtype=dtype) for site in plan.sites
    }
    columns["token_ids"] = Fixed(Value("int32"), length=length)
    columns["text_ids"] = Fixed(Value("int64"), length=length)
    return Features(columns)


def column_of(site: str, plan: HarvestPlan) -> str:
    """The column of a site: its name, or TransformerLens's for the same point, where that has one."""
    match = re.fullmatch(r"layers\.(\d+)\.(\w+)", site)
    if plan.columns == "sites" or match is None or match[2] not in _HOOKS:
        return site
    return f"blocks.{match[1]}.{_HOOKS[match[2]]}"


def description(plan: HarvestPlan, names: Sequence[str]) -> dict[str, bytes]:
    """The two files by which `datasets.load_from_disk` opens shards of these names."""
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
    """Raises SettingsError when a record batch of one context would pass what Arrow's offsets can count."""
    if plan.context * plan.d_model >= 1 << 31:
        raise SettingsError(
            f"context {plan.context} of width {plan.d_model}: arrow holds at most 2^31 values a context"
        )


def _stored_dtype(plan: HarvestPlan) -> str:
    return "float16" if plan.dtype == "float16" else "float32"


def _offsets(n: int, width: int) -> pa.Array:
    return pa.array(np.arange(n + 1, dtype=np.int32) * np.int32(width))


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
