"""actscope: the oscilloscope for language models.

    with actscope.capture(model, preset="balanced", to="run.acts"):
        model.generate(...)
    recording = actscope.open("run.acts")

Importing this package loads neither torch, vLLM nor FastAPI; parts that need them load them when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actscope.capture.auto_config import auto_config
    from actscope.capture.config import CaptureConfig
    from actscope.capture.session import Capture, capture
    from actscope.recording.reading.recording import Recording

    open = Recording.open

__version__ = "0.1.0"

__all__ = ["Capture", "CaptureConfig", "Recording", "__version__", "auto_config", "capture", "open"]

#: Where each public name lives: (module, attribute path).
_HOMES = {
    "Capture": ("actscope.capture.session", "Capture"),
    "CaptureConfig": ("actscope.capture.config", "CaptureConfig"),
    "Recording": ("actscope.recording.reading.recording", "Recording"),
    "auto_config": ("actscope.capture.auto_config", "auto_config"),
    "capture": ("actscope.capture.session", "capture"),
    "open": ("actscope.recording.reading.recording", "Recording.open"),
}
#: Packages that a module of ours may lack, and the extra that has them.
_EXTRAS = {
    "torch": "hf",
    "transformers": "hf",
    "mcap": "record",
    "zstandard": "record",
    "lz4": "record",
    "crc32c": "record",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actscope' has no attribute {name!r}; it has {', '.join(__all__)}")
    from functools import reduce
    from importlib import import_module

    module, path = _HOMES[name]
    try:
        home = import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        from actscope.errors import MissingExtra

        raise MissingExtra(_EXTRAS[missing], missing) from error
    found = reduce(getattr, path.split("."), home)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
