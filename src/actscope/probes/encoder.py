"""The encoder of a sparse autoencoder (SAE), which turns a row into features. Reference implementation in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actscope.errors import ProbeError

#: Name → code, as in kernels. relu and jumprelu have the same codes as for probes.
ENCODERS: dict[str, int] = {"relu": 1, "jumprelu": 3, "topk": 4}
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")


@dataclass(frozen=True, slots=True, eq=False)
class SaeEncoder:
    """SAE encoder: `features = act((norm(row) - pre_bias) @ weight + bias)`.

    The activations, with z the argument of `act`:

        relu        max(z, 0)
        jumprelu    max(z, 0) where z > threshold, else 0 (Rajamanoharan et al. 2024, arXiv:2407.14435)
        topk        the k largest z of each row, then relu (Gao et al. 2024, arXiv:2406.04093)

    Attributes:
        weight: float32 [d, m].
        bias: float32 [m]; zeros if the SAE has none.
        pre_bias: float32 [d]; zeros if the SAE has none.
        threshold: float32 [m]; zeros if the SAE has none.
        activation: "relu", "jumprelu" or "topk".
        k: Features kept by topk, 1 to m; 0 for the other activations.
        site: Site whose rows it reads, or None if unknown.
        name: Name for messages and tables.
        normalisation: Normalization of rows, as SAELens's `normalize_activations`.

    Raises:
        ProbeError: Shapes, dtypes or settings are inconsistent, or a tensor is not finite.
    """

    weight: np.ndarray
    bias: np.ndarray
    pre_bias: np.ndarray
    threshold: np.ndarray
    activation: str = "relu"
    k: int = 0
    site: str | None = None
    name: str = ""
    normalisation: str = "none"

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or not self.weight.size:
            raise ProbeError(f"{self.name}: W_enc must be [d, f], found {list(self.weight.shape)}")
        if self.activation not in ENCODERS or self.normalisation not in NORMALISATIONS:
            raise ProbeError(
                f"{self.name}: activation {self.activation!r}, input normalisation {self.normalisation!r}: not computed here; "
                f"there are {', '.join(ENCODERS)}; and {', '.join(NORMALISATIONS)}"
            )
        if not (0 < self.k <= self.n_features if self.activation == "topk" else self.k == 0):
            raise ProbeError(
                f"{self.name}: topk needs 1 <= k <= {self.n_features} and nothing else has k; found {self.k}"
            )
        for what, size in (("weight", None), ("bias", 1), ("pre_bias", 0), ("threshold", 1)):
            self._check(what, self.weight.shape if size is None else (self.weight.shape[size],))

    def _check(self, what: str, expected: tuple[int, ...]) -> None:
        array, known = getattr(self, what), {"weight": "W_enc", "bias": "b_enc", "pre_bias": "b_dec"}.get(what, what)
        if array.shape != expected:
            raise ProbeError(
                f"{self.name}: {known} must be {list(expected)} beside W_enc {list(self.weight.shape)}, "
                f"found {list(array.shape)}"
            )
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ProbeError(f"{self.name}: tensor {known} holds NaN or infinity, or is no float32")

    @property
    def d(self) -> int:
        """Return the width of the rows that it reads."""
        return int(self.weight.shape[0])

    @property
    def n_features(self) -> int:
        """Return the number of features m."""
        return int(self.weight.shape[1])

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of rows [n, d] of any floating dtype: float32 [n, m]."""
        z = (_normalised(rows.astype(np.float32), self.normalisation) - self.pre_bias) @ self.weight
        z += self.bias
        rest = self.n_features - self.k
        if self.activation == "topk" and rest:
            np.put_along_axis(z, np.argpartition(z, rest, axis=1)[:, :rest], 0, axis=1)
        if self.activation == "jumprelu":
            z[z <= self.threshold] = 0
        return np.asarray(np.maximum(z, 0, out=z))


def _normalised(rows: np.ndarray, how: str) -> np.ndarray:
    if how == "constant_norm_rescale":
        return np.asarray(rows * (np.sqrt(np.float32(rows.shape[1])) / np.linalg.norm(rows, axis=1, keepdims=True)))
    if how == "layer_norm":  # as in torch: sample std (ddof 1), plus eps
        off = rows - rows.mean(axis=1, keepdims=True)
        return np.asarray(off / (off.std(axis=1, ddof=1, keepdims=True) + np.float32(1e-5)))
    return rows
