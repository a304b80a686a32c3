"""SAE features inside the forward pass: the strongest features of each row, in a buffer of fixed shape.

`z = (norm(x) - pre_bias) @ weight + bias`, followed by the encoder's activation (`actscope.probes.encoder.ENCODERS`):
relu max(z, 0); jumprelu max(z, 0) where z > threshold, else 0 (Rajamanoharan et al. 2024, arXiv:2407.14435); topk the k largest
of a row, then relu (Gao et al. 2024, arXiv:2406.04093). BatchTopK encoders run as jumprelu with their single threshold.

The torch operations have no data-dependent shapes, so a CUDA graph can capture them. They have run on CPU tensors only. On two
busy cores (AVX2), 512 rows with d = 768, m = 16,384 and 32 places took 0.19 to 0.21 s, of which the product took 0.2 s; one row
took 2 ms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actscope.probes.encoder import ENCODERS, NORMALISATIONS

_CHUNK_NUMBERS = 1 << 24  # elements of z at a time: 64 MiB
_LEAST_CHUNK = 1024  # in features; a narrower product is slow


def encode_reference(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, pre_bias: Tensor, threshold: Tensor,
    activation: int, features: Tensor, k: int, normalisation: str = "none",
) -> None:  # fmt: skip
    """Write the `k` largest activations of each row of `hidden + residual` to `features`, largest first.

    features float32 [max_rows, 2 * places]: even columns are feature numbers (exact below 2**24), odd ones activations. Unused
    places, and those whose activation is 0, hold -1 and 0. For topk, `k` is the smaller of the places and the encoder's own k.

    hidden, residual [..., d], any floating dtype; weight float32 [d, m]; bias, threshold float32 [m]; pre_bias float32 [d]. Rows
    beyond max_rows are ignored. A NaN activation is written as infinity: computed, but not finite. Equal activations are in no
    particular order. The temporary z takes 64 MiB, or 1,024 features of every row if that is more.
    """
    x = _rows(hidden, residual, features.shape[0], normalisation) - pre_bias
    limit = threshold if activation == ENCODERS["jumprelu"] else None
    values, numbers = _strongest(x, weight, bias, limit, min(k, features.shape[1] // 2, weight.shape[1]))
    _write(features[: len(x)], values, numbers)


def _rows(hidden: Tensor, residual: Tensor | None, at_most: int, normalisation: str) -> Tensor:
    """Return float32 [n, d]: the residual stream rounded to the dtype of `hidden`, as in the model, then normalized."""
    rows = hidden.reshape(-1, hidden.shape[-1])[:at_most].float()
    if residual is not None:
        rows = (rows + residual.reshape(-1, hidden.shape[-1])[:at_most].float()).to(hidden.dtype).float()
    return _normalised(rows, normalisation)


def _normalised(rows: Tensor, how: str) -> Tensor:
    """Torch counterpart of `_normalised` in `actscope.probes.encoder`."""
    assert how in NORMALISATIONS
    if how == "constant_norm_rescale":
        length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows * (math.sqrt(rows.shape[1]) / length)
    if how == "layer_norm":
        off = rows - rows.mean(dim=1, keepdim=True)
        return off / (off.std(dim=1, keepdim=True) + 1e-5)
    return rows


def _strongest(x: Tensor, weight: Tensor, bias: Tensor, limit: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values [n, k] of each row and their feature numbers, largest first; computed in chunks."""
    m, step = weight.shape[1], max(_CHUNK_NUMBERS // max(len(x), 1), _LEAST_CHUNK, k)
    best: tuple[Tensor, Tensor] | None = None
    for start in range(0, m, step):
        part = slice(start, min(start + step, m))
        z = torch.addmm(bias[part], x, weight[:, part])
        if limit is not None:
            z.masked_fill_(z <= limit[part], 0)
        values, numbers = z.topk(min(k, z.shape[1]), dim=1)  # NaN counts as the largest
        best = _merged(best, (values, numbers + start), k)
    assert best is not None
    return best


def _merged(best: tuple[Tensor, Tensor] | None, more: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    if best is None:
        return more
    values, numbers = torch.cat((best[0], more[0]), dim=1), torch.cat((best[1], more[1]), dim=1)
    values, order = values.topk(k, dim=1)
    return values, numbers.gather(1, order)


def _write(features: Tensor, values: Tensor, numbers: Tensor) -> None:
    values = torch.where(values.isnan(), torch.inf, values)
    fires, k = values > 0, values.shape[1]
    features[:, 0 : 2 * k : 2] = torch.where(fires, numbers, -1).to(features.dtype)
    features[:, 1 : 2 * k : 2] = torch.where(fires, values, 0.0)
    features[:, 2 * k :: 2] = -1
    features[:, 2 * k + 1 :: 2] = 0
