"""The older framework's automatic configuration. `actscope.auto_config(model, purpose=...)` also looks at the model's size."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from actscope.compat.config import InstrumentationConfig
from actscope.errors import SettingsError

_FAMILIES = ("gpt", "llama", "qwen", "bert")
_PURPOSES = {
    "interpretability": InstrumentationConfig.attention_analysis,
    "debugging": InstrumentationConfig.fast_capture,
    "performance_analysis": InstrumentationConfig.balanced,
    "full_capture": InstrumentationConfig.max,
}


def detect_model_architecture(model: nn.Module) -> str:
    """Return the model's type: that of its config (`llama`, `gpt2`, `qwen2` …), else the family in its class's name.

    Returns:
        The type in lower case, or "unknown".
    """
    named = str(getattr(getattr(model, "config", None), "model_type", "") or "").lower()
    own = type(model).__name__.lower()
    return named or next((family for family in _FAMILIES if family in own), "unknown")


def create_optimized_config(model_arch: str, purpose: str = "performance_analysis") -> InstrumentationConfig:
    """Return a configuration for a purpose.

    Args:
        model_arch: What `detect_model_architecture` returned. It has no effect: presets fit every architecture.
        purpose: interpretability, debugging, performance_analysis or full_capture.

    Returns:
        A configuration, which may still be changed.

    Raises:
        SettingsError: The purpose is unknown.
    """
    if purpose not in _PURPOSES:
        near = get_close_matches(purpose, _PURPOSES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingsError(
            f"purpose {purpose!r}: expected one of {', '.join(_PURPOSES)}{hint}; actscope.auto_config knows more"
        )
    return _PURPOSES[purpose]()
