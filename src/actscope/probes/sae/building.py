"""Tensors of an SAE's encoder: from what the layouts hold to an `SaeEncoder`."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from actscope.errors import ProbeError
from actscope.probes.encoder import SaeEncoder
from actscope.probes.hooks import stated_site

Tensors = dict[str, np.ndarray]

LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
#: Norms of decoder rows that differ by less than this are 1: what half precision leaves of a norm of 1.
NORM_TOLERANCE = 5e-3
#: Families with LayerNorm, whose stream TransformerLens centres with center_writing_weights. It ignores it for RMSNorm.
_LAYER_NORM = re.compile(r"gpt-?2|pythia|opt-|bloom|gpt-neo|gpt-j|tiny-stories|solu|gelu|stablelm|santacoder|redwood")


def build(
    name: str,
    tensors: Tensors,
    kind: str,
    k: int,
    site: str | None,
    *,
    shift: bool = False,
    normalisation: str = "none",
) -> SaeEncoder:
    """Return an encoder of `W_enc`, `b_enc` and, if `shift`, `b_dec` (zeros if absent).

    Raises ProbeError if the tensors do not fit together.
    """
    absent = {"W_enc", "b_enc"} - tensors.keys()
    if absent:
        raise ProbeError(f"no tensor {', '.join(sorted(absent))}; it has {', '.join(sorted(tensors)[:8])}")
    weight, bias, kind = tensors["W_enc"], tensors["b_enc"], kind.replace("-", "").replace("_", "").lower()
    threshold = tensors.get("threshold")
    if threshold is None and "log_threshold" in tensors:
        threshold = np.exp(tensors["log_threshold"])
    if kind == "jumprelu" and threshold is None:
        raise ProbeError(f"{name}: jumprelu needs thresholds, and it has none")
    if kind == "jumprelu" and threshold is not None and threshold.size == 1 != bias.size:
        threshold = np.full(bias.shape, threshold.reshape(-1)[0], np.float32)
    return SaeEncoder(
        np.ascontiguousarray(weight, np.float32),
        np.ascontiguousarray(bias, np.float32),
        tensors["b_dec"] if shift and "b_dec" in tensors else np.zeros(weight.shape[:1], np.float32),
        threshold if kind == "jumprelu" and threshold is not None else np.zeros(bias.shape, np.float32),
        kind,
        k if kind == "topk" else 0,
        stated_site(site, None),
        name,
        normalisation,
    )


def tensor_named(tensors: Tensors, name: str) -> np.ndarray:
    """Return a tensor. Raises ProbeError, which lists the tensors that there are, if it is absent."""
    if name not in tensors:
        raise ProbeError(f"no tensor {name}; it has {', '.join(sorted(tensors))}")
    return tensors[name]


def linear(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Return weight [d, m] and bias [m], from `W_enc` and `b_enc` or from torch's Linear(d, m).

    The weight of a Linear is [m, d] and is transposed.
    """
    if "W_enc" in tensors:
        return tensors["W_enc"], tensor_named(tensors, "b_enc")
    weight, bias = tensor_named(tensors, "encoder.weight"), tensor_named(tensors, "encoder.bias")
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ProbeError(f"encoder.weight {list(weight.shape)} and encoder.bias {list(bias.shape)} do not fit together")
    decoder = tensors.get("decoder.weight")
    if decoder is not None and decoder.shape != weight.shape[::-1]:
        raise ProbeError(f"decoder.weight must be {list(weight.shape[::-1])}, found {list(decoder.shape)}")
    return weight.T, bias


def decoder_norms(tensors: Tensors, name: str, expected: tuple[int, ...], axis: int) -> np.ndarray:
    """Return the norm of each feature's decoder vector, float32 [m]. Raises ProbeError if the decoder is absent or misfits."""
    decoder = tensor_named(tensors, name)
    if decoder.shape != expected:
        raise ProbeError(f"{name} must be {list(expected)} beside the encoder, found {list(decoder.shape)}")
    return np.asarray(np.linalg.norm(decoder, axis=axis), np.float32)


def rescaled(tensors: Tensors, sizes: np.ndarray) -> Tensors:
    """Return the encoder whose pre-activations are `sizes` times as large. Thresholds stay: they are of the product."""
    return tensors | {"W_enc": tensors["W_enc"] * sizes, "b_enc": tensors["b_enc"] * sizes}


def gated(weight: np.ndarray, r_mag: np.ndarray, b_gate: np.ndarray, b_mag: np.ndarray) -> Tensors:
    """Return a gated encoder as a JumpReLU with thresholds (Rajamanoharan et al. 2024, arXiv:2404.16014, section 3.3).

    A feature is `relu(exp(r) * z + b_mag)` where `z + b_gate > 0`, with `z = x @ weight`. In terms of the magnitude
    `exp(r) * z + b_mag`, the gate is open above `b_mag - exp(r) * b_gate`.

    Raises ProbeError if the shapes do not fit together.
    """
    shapes = {"r_mag": r_mag.shape, "b_gate": b_gate.shape, "b_mag": b_mag.shape}
    if weight.ndim != 2 or set(shapes.values()) != {weight.shape[1:]}:
        raise ProbeError(f"W_enc {list(weight.shape)} does not fit its gate: {shapes}")
    with np.errstate(over="ignore"):
        scale = np.exp(r_mag.astype(np.float64))
        threshold = (b_mag - scale * b_gate).astype(np.float32)
        found = (weight * scale).astype(np.float32)
    return {"W_enc": found, "b_enc": b_mag, "threshold": threshold}


def centred(tensors: Tensors, model: str, normalisation: str, *, shift: bool) -> Tensors:
    """Return an encoder of the model's own rows, of one that reads rows without their mean.

    TransformerLens with `center_writing_weights` takes the mean over d out of everything that is added to the stream. With the
    projection C = I - 11'/d: `(C x - b) @ W = x @ (C W) - b @ W`.

    Raises:
        ProbeError: It is not known whether this model's stream is centred, or the rows are normalised too.
    """
    if normalisation == "layer_norm":
        return tensors  # it takes the mean out itself
    if not _LAYER_NORM.search(model.lower()) or normalisation != "none":
        raise ProbeError(
            f"it reads rows without their mean (center_writing_weights) of {model or 'an unnamed model'}, with input "
            f"normalisation {normalisation!r}: computed here for LayerNorm models such as gpt2 and without normalisation only"
        )
    weight = tensor_named(tensors, "W_enc")
    if weight.ndim != 2:
        raise ProbeError(f"W_enc must be [d, f], found {list(weight.shape)}")
    fixed = tensors | {"W_enc": weight - weight.mean(axis=0, dtype=np.float64).astype(np.float32)}
    before = tensors["b_dec"].astype(np.float64) if shift and "b_dec" in tensors else np.zeros(len(weight))
    if before.shape != weight.shape[:1]:
        raise ProbeError(f"b_dec must be {list(weight.shape[:1])}, found {list(before.shape)}")
    change = before @ (fixed["W_enc"].astype(np.float64) - weight)
    gains = {"b_enc": 1.0, "b_gate": 1.0, "b_mag": np.exp(tensors.get("r_mag", np.zeros(1)).astype(np.float64))}
    for name in gains.keys() & tensors.keys():
        fixed[name] = (tensors[name] + gains[name] * change).astype(np.float32)
    return fixed


def whole_number(value: object, what: str) -> int:
    """Return a number that a config may hold as a string; 0 for None. Raises ProbeError for anything else."""
    if value is None:
        return 0
    text = str(value)[:20]
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}(\.0)?", text):
        raise ProbeError(f"{what} must be a whole number, found {text!r}")
    return int(float(text))


def only_known(what: str, found: object, known: Iterable[str]) -> str:
    """Return a setting's value. Raises ProbeError unless it is one of `known`."""
    values = tuple(known)
    if found not in values:
        raise ProbeError(f"{what} {found!r} is not computed here; expected one of {', '.join(values)}")
    return str(found)
