"""Capture configurations derived from a model and a purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from actscope.capture.config import CaptureConfig
from actscope.capture.plan import ModelShape, explain, shape_of
from actscope.errors import SettingsError, SiteError
from actscope.near_miss import hint, hinted

_preset = CaptureConfig.preset


def _probes(shape: ModelShape) -> CaptureConfig:
    return replace(
        _preset("balanced"), reason="probes look for their best layer: the stream after every block, bit for bit"
    )


def _sae(shape: ModelShape) -> CaptureConfig:
    middle = shape.n_layers // 2
    return replace(
        _preset("balanced"),
        sites=str(middle) if shape.n_layers else "all",
        reason=f"a sparse autoencoder is trained on one site; layer {middle} lies in the middle of {shape.n_layers}",
    )


def _logit_lens(shape: ModelShape) -> CaptureConfig:
    return replace(
        _preset("balanced"),
        sites="embed,all,final_norm",
        reason="the lens reads the stream from the embedding to the last norm",
    )


def _patching(shape: ModelShape) -> CaptureConfig:
    return replace(_preset("max"), reason="what each part adds, the stream after it, and both ends, bit for bit")


def _last_token(shape: ModelShape) -> CaptureConfig:
    return replace(
        _preset("balanced"),
        granularity="sampled:last=1+generated",
        reason="the prompt's last position has seen all of it; the rest of the prompt is left out",
    )


def _archive(shape: ModelShape) -> CaptureConfig:
    small = "error_bounded:1e-3" if shape.dtype == "float32" else "lossless"
    why = (
        "fp32 rows shrink 3x below 1e-3"
        if shape.dtype == "float32"
        else f"{shape.dtype} already carries 1e-3 of rounding"
    )
    return replace(_preset("max_compression"), codec=small, reason=f"for keeping: {why}")


PURPOSES: dict[str, Callable[[ModelShape], CaptureConfig]] = {
    "general": lambda shape: _preset("balanced"),
    "probes": _probes,
    "sae_training": _sae,
    "logit_lens": _logit_lens,
    "patching": _patching,
    "last_token": _last_token,
    "attention": lambda shape: _preset("attention_analysis"),
    "mlp": lambda shape: _preset("mlp_analysis"),
    "archive": _archive,
    "debugging": lambda shape: _preset("fast_capture"),
}


@hinted
def auto_config(model: nn.Module, purpose: str = "general", tokens_per_s: float = 0.0) -> CaptureConfig:
    """Return a capture configuration for a model and a purpose.

    If the model's blocks cannot be found, the entries of its module lists are captured, or else its direct children.

    Args:
        model: The model to capture. It is not run.
        purpose: One of general, probes, sae_training, logit_lens, patching, last_token, attention, mlp, archive, debugging.
        tokens_per_s: Expected speed in tokens/s; 0 if unknown. If given, it sets `throughput` (bytes/s) and `memory_bytes`
            to two seconds of rows, clipped to 256 MiB .. 4 GiB. A codec of "auto" is then chosen to reach that throughput.

    Returns:
        The configuration. Its `reason` explains the choice; `explain(config, model)` estimates the cost.

    Raises:
        SettingsError: The purpose is unknown.
        SiteError: The model has no module to capture.
    """
    if purpose not in PURPOSES:
        raise SettingsError(f"purpose {purpose!r}: there are {', '.join(PURPOSES)}{hint(purpose, PURPOSES, form=repr)}")
    shape = shape_of(model)
    config = PURPOSES[purpose](shape)
    if not shape.n_layers:
        config = _by_modules(config, model)
    need = explain(config, model, tokens_per_s)
    rate = need.gigabytes_per_s * 1e9
    memory = min(max(int(2 * rate), 256 << 20), 4 << 30) if rate else config.memory_bytes
    reason = (
        f"{purpose}: {config.reason}; {shape.architecture} has {shape.n_layers or 'no'} blocks of width {shape.d_model}"
    )
    return replace(config, throughput=rate, memory_bytes=memory, reason=reason)


def _by_modules(config: CaptureConfig, model: nn.Module) -> CaptureConfig:
    """Return the configuration with `sites` set to the model's outermost module lists, or else to its direct children."""
    lists = [
        path for path, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and path and len(m)
    ]
    chosen = [f"{path}.*" for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    chosen = chosen or [name for name, _ in model.named_children()]
    if not chosen:
        raise SiteError(f"{type(model).__name__} has no parts to read: wrap it in a module, and capture that")
    granularity = "full" if config.granularity in ("attention", "mlp") else config.granularity
    return replace(config, sites=",".join(chosen), granularity=granularity)
