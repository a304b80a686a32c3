"""Sparse autoencoders: the encoder only, which turns rows into features.

Read are a `.safetensors` file with tensors `W_enc` [d, f], `b_enc` [f], and if there are `b_dec` [d], `threshold` [f], with
`activation` (relu, jumprelu, topk), `k`, `site` and `apply_b_dec_to_input` in its metadata; and SAELens' folders, `cfg.json` with
`sae_weights.safetensors` (https://github.com/jbloomAus/SAELens). Another kind of encoder is an error: a plausible
number from the wrong formula is worse than none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from actscope.codecs import carrier, to_float32
from actscope.errors import ProbeError, SiteError
from actscope.sites import Site

_MAX_BYTES = 64 << 30
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_POINTS = {
    "hook_resid_pre": "resid_pre", "hook_resid_post": "resid_post", "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out",
}  # fmt: skip
ACTIVATIONS = ("relu", "jumprelu", "topk")
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")


@dataclass(frozen=True, slots=True, eq=False)
class Sae:
    """`features = act(norm(row) - b_dec) @ W_enc + b_enc)`; all float32. `b_dec` is zeros where it is not applied to the input.

    relu: max(z, 0). jumprelu: max(z, 0) where z > threshold, else 0 (Rajamanoharan et al. 2024). topk: the k largest z of each
    row, then relu (Gao et al. 2024). norm: as SAELens has it under `normalize_activations`.
    """

    name: str
    site: str | None
    w_enc: np.ndarray
    b_enc: np.ndarray
    b_dec: np.ndarray
    activation: str = "relu"
    threshold: np.ndarray | None = None
    k: int = 0
    normalisation: str = "none"

    def __post_init__(self) -> None:
        d, f = self.w_enc.shape if self.w_enc.ndim == 2 else (0, 0)
        shapes = {"b_enc": (self.b_enc, (f,)), "b_dec": (self.b_dec, (d,)), "threshold": (self.threshold, (f,))}
        for what, (array, expected) in shapes.items():
            if array is not None and array.shape != expected:
                raise ProbeError(
                    f"{self.name}: {what} must be {list(expected)} beside W_enc {[d, f]}, found {list(array.shape)}"
                )
        if not d or not f:
            raise ProbeError(f"{self.name}: W_enc must be [d, f], found {list(self.w_enc.shape)}")
        if self.activation not in ACTIVATIONS or self.normalisation not in NORMALISATIONS:
            raise ProbeError(
                f"{self.name}: activation {self.activation!r}, input normalisation {self.normalisation!r}: not computed here; "
                f"there are {', '.join(ACTIVATIONS)}; and {', '.join(NORMALISATIONS)}"
            )
        if (self.activation == "jumprelu") != (self.threshold is not None) or (
            self.activation == "topk" and not 0 < self.k <= f
        ):
            raise ProbeError(f"{self.name}: jumprelu needs thresholds and nothing else does; topk needs 1 <= k <= {f}")

    @property
    def d(self) -> int:
        return int(self.w_enc.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.w_enc.shape[1])

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Features float32 [n, f] of rows [n, d]."""
        z = (_normalised(rows.astype(np.float32), self.normalisation) - self.b_dec) @ self.w_enc
        z += self.b_enc
        if self.activation == "topk" and self.k < self.n_features:
            rank = np.argpartition(z, self.n_features - self.k, axis=1)
            np.put_along_axis(z, rank[:, : self.n_features - self.k], 0, axis=1)
        if self.threshold is not None:
            z[z <= self.threshold] = 0
        return np.asarray(np.maximum(z, 0, out=z))


def _normalised(rows: np.ndarray, how: str) -> np.ndarray:
    if how == "constant_norm_rescale":
        return np.asarray(rows * (np.sqrt(np.float32(rows.shape[1])) / np.linalg.norm(rows, axis=1, keepdims=True)))
    if how == "layer_norm":  # torch's std is of the sample, and eps is added to it
        off = rows - rows.mean(axis=1, keepdims=True)
        return np.asarray(off / (off.std(axis=1, ddof=1, keepdims=True) + np.float32(1e-5)))
    return rows


def load_sae(path: Path, site: str | None = None) -> Sae:
    """Read an encoder of either layout; `site` overrides what it says of itself. Raises ProbeError, naming the file."""
    try:
        if path.is_dir():
            return _load_saelens(path, site)
        metadata, tensors = _tensors(path)
        said = {"activation": "jumprelu" if "threshold" in tensors else "relu", **metadata}
        return _sae(path, tensors, said, site or metadata.get("site"))
    except ProbeError as error:
        raise ProbeError(f"{path}: {error}") from error
    except OSError as error:
        raise ProbeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _load_saelens(path: Path, site: str | None) -> Sae:
    try:
        config = msgspec.json.decode((path / "cfg.json").read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ProbeError(f"cfg.json is not a JSON object: {error}") from error
    _, tensors = _tensors(path / "sae_weights.safetensors")
    arguments = config.get("activation_fn_kwargs") or {}
    kind = str(config.get("architecture", "standard"))
    activation = str(config.get("activation_fn_str") or config.get("activation_fn") or "relu")
    if kind == "standard":
        kind = activation
    elif kind in ("batchtopk", "matryoshka_batchtopk") and "threshold" in tensors:
        kind = "jumprelu"  # as SAELens itself runs them
    for key in ("rescale_acts_by_decoder_norm", "finetuning_scaling_factor"):
        if config.get(key):
            raise ProbeError(f'cfg.json sets "{key}", which is not computed here')
    metadata = config.get("metadata") or config.get("meta") or {}
    said = {
        "activation": kind,
        "k": config.get("k", arguments.get("k", 0)),
        "apply_b_dec_to_input": config.get("apply_b_dec_to_input", True),
        "normalisation": config.get("normalize_activations") or "none",
    }
    hook = str(config.get("hook_name") or metadata.get("hook_name") or "")
    return _sae(path, tensors, said, site or site_of_hook(hook))


def _sae(path: Path, tensors: dict[str, np.ndarray], said: dict[str, Any], site: str | None) -> Sae:
    absent = {"W_enc", "b_enc"} - tensors.keys()
    if absent:
        raise ProbeError(f"no tensor {', '.join(sorted(absent))}; it has {', '.join(sorted(tensors)[:8])}")
    w_enc = tensors["W_enc"]
    applied = str(said.get("apply_b_dec_to_input", True)).lower() not in ("false", "0")
    b_dec = tensors.get("b_dec") if applied else None
    threshold = tensors.get("threshold")
    if threshold is None and "log_threshold" in tensors:
        threshold = np.exp(tensors["log_threshold"])
    if site is not None:
        try:
            Site.parse(site)
        except SiteError as error:
            raise ProbeError(str(error)) from error
    k = str(said.get("k") or 0)
    return Sae(
        path.stem if path.is_file() else path.name,
        site,
        w_enc,
        tensors["b_enc"],
        np.zeros(w_enc.shape[0], np.float32) if b_dec is None else b_dec,
        str(said["activation"]).replace("-", "").lower(),
        threshold if str(said["activation"]).replace("-", "").lower() == "jumprelu" else None,
        int(k) if k.isdecimal() else 0,
        str(said.get("normalisation", "none")),
    )


def site_of_hook(hook: str) -> str | None:
    """TransformerLens' hook name as ours: `blocks.8.hook_resid_pre` is `layers.8.resid_pre`; None for others."""
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_\w+)", hook)
    return f"layers.{int(match[1])}.{_POINTS[match[2]]}" if match and match[2] in _POINTS else None


def _tensors(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and the tensors of an encoder as float32; numpy's own reader of safetensors has no bfloat16."""
    from safetensors import SafetensorError, deserialize

    if path.stat().st_size > _MAX_BYTES:
        raise ProbeError(f"the file is larger than {_MAX_BYTES >> 30} GiB")
    raw = path.read_bytes()
    try:
        found = deserialize(raw)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ProbeError(f"not a safetensors file: {error}") from error
    wanted = ("W_enc", "b_enc", "b_dec", "threshold", "log_threshold")
    tensors = {name: _float32(name, tensor) for name, tensor in found if name in wanted}
    header = msgspec.json.decode(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return {str(k): str(v) for k, v in (header.get("__metadata__") or {}).items()}, tensors


def _float32(name: str, tensor: dict[str, Any]) -> np.ndarray:
    dtype = _DTYPES.get(tensor["dtype"])
    if dtype is None:
        raise ProbeError(f"tensor {name} is {tensor['dtype']}; expected one of {', '.join(_DTYPES)}")
    flat = np.frombuffer(tensor["data"], carrier(dtype))
    values = to_float32(flat, dtype).reshape(tensor["shape"])
    if not np.isfinite(values).all():
        raise ProbeError(f"tensor {name} holds NaN or infinity")
    return values
