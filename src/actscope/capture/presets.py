"""The six presets: overrides of the default configuration, each with its purpose."""

from __future__ import annotations

from actscope.capture.settings import CaptureSettings

#: Overridden fields of `actscope.capture.config.CaptureConfig`, by preset name.
PRESETS: dict[str, CaptureSettings] = {
    "fast_capture": {
        "sites": "first,middle,last",
        "codec": "none",
        "reason": "least work beside the model: three layers, stored as they come",
    },
    "max": {
        "sites": "embed,all,final_norm",
        "points": ("attn_out", "mixer_out", "mlp_out", "resid_post"),
        "codec": "lossless",
        "memory_bytes": 4 << 30,
        "reason": "everything, bit for bit: what each block adds, the stream after it, and both ends",
    },
    "balanced": {
        "codec": "auto",
        "reason": "the residual stream after every block, bit for bit, by whichever codec pays",
    },
    "max_compression": {
        "codec": "error_bounded:1e-3",
        "block_bytes": 16 << 20,
        "reason": "the residual stream after every block at a relative error below 1e-3, in large blocks",
    },
    "attention_analysis": {
        "granularity": "attention",
        "codec": "auto",
        "reason": "what each attention block adds to the stream",
    },
    "mlp_analysis": {
        "granularity": "mlp",
        "codec": "auto",
        "reason": "what each MLP adds to the stream",
    },
}
