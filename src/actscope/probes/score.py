"""The definition of a score, in numpy: the reference for every faster implementation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actscope.errors import ProbeError

#: Name → code, as in kernels and tables.
#: identity z; relu max(z, 0); sigmoid 1 / (1 + exp(-z)); jumprelu z where z > jump, else 0
#: (Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU SAEs").
ACTIVATIONS: dict[str, int] = {"identity": 0, "relu": 1, "sigmoid": 2, "jumprelu": 3}


def score(
    rows: np.ndarray, weight: np.ndarray, bias: np.ndarray, activations: Sequence[str], jump: np.ndarray
) -> np.ndarray:
    """Return `act(rows @ weight + bias)`, computed in float32, and in float64 for rows of float64.

    Args:
        rows: [n, d], any floating dtype.
        weight: float32 [d, k].
        bias: float32 or float64 [k].
        activations: k keys of ACTIVATIONS.
        jump: float32 or float64 [k]; thresholds of jumprelu columns.

    Returns:
        float32 [n, k].

    Raises:
        ValueError: The rows are not as wide as `weight` is high, or `bias` has another length than its columns.
        ProbeError: An activation has another name.
    """
    rows = rows if rows.dtype == np.float64 else rows.astype(np.float32)
    z = rows @ weight + bias
    columns = [activate(z[:, i], name, float(jump[i])) for i, name in enumerate(activations)]
    return np.stack(columns, axis=1).astype(np.float32)


def activate(z: np.ndarray, activation: str, jump: float = 0.0) -> np.ndarray:
    """Apply one activation elementwise. Raises ProbeError for an unknown name."""
    if activation == "relu":
        return np.asarray(np.maximum(z, 0))
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(z, -80, 80))))
    if activation == "jumprelu":
        return np.where(z > jump, z, 0)
    if activation != "identity":
        raise ProbeError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    return z
