"""actscope: the oscilloscope for language models.

    with actscope.capture(model, preset="balanced", to="run.acts"):
        model.generate(...)
    recording = actscope.open("run.acts")

Importing this package does not import torch, vLLM or FastAPI. The parts that need them import them on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach
from actscope._version import __version__

if TYPE_CHECKING:
    from actscope import client
    from actscope.capture.auto_config import auto_config
    from actscope.capture.config import CaptureConfig
    from actscope.capture.plan import explain
    from actscope.capture.session import Capture, capture
    from actscope.recording.reading.recording import Recording

    open = Recording.open

__all__ = [
    "Capture",
    "CaptureConfig",
    "Recording",
    "__version__",
    "auto_config",
    "capture",
    "client",
    "explain",
    "open",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Capture": "actscope.capture.session:Capture",
        "CaptureConfig": "actscope.capture.config:CaptureConfig",
        "Recording": "actscope.recording.reading.recording:Recording",
        "auto_config": "actscope.capture.auto_config:auto_config",
        "capture": "actscope.capture",  # the package, which is callable
        "client": "actscope.client",
        "explain": "actscope.capture.plan:explain",
        "open": "actscope.recording.reading.recording:Recording.open",
    },
)
