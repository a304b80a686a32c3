"""Calls of older tools, kept as thin wrappers around actscope's own. `docs/coming-from.md` maps the rest of their names.

    from actscope.compat import capture_activations              # was: from llm_instrumentation import capture_activations
    from actscope.compat import ActivationClient                 # was: from activation_server.client import ActivationClient

New code is better off with `actscope.capture`, `actscope.open` and `actscope.feed.FeedClient`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.compat.activation_client import ActivationClient
    from actscope.compat.analysis import analyze_activations, analyze_activations_with_tokens
    from actscope.compat.auto_detect import create_optimized_config, detect_model_architecture
    from actscope.compat.config import HookGranularity, InstrumentationConfig
    from actscope.compat.framework import InstrumentationFramework, capture_activations
    from actscope.compat.packet_stream import PacketStreamWriter, read_packet_stream, unpack_packet_stream

__all__ = [
    "ActivationClient",
    "HookGranularity",
    "InstrumentationConfig",
    "InstrumentationFramework",
    "PacketStreamWriter",
    "analyze_activations",
    "analyze_activations_with_tokens",
    "capture_activations",
    "create_optimized_config",
    "detect_model_architecture",
    "read_packet_stream",
    "unpack_packet_stream",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ActivationClient": "actscope.compat.activation_client:ActivationClient",
        "HookGranularity": "actscope.compat.config:HookGranularity",
        "InstrumentationConfig": "actscope.compat.config:InstrumentationConfig",
        "InstrumentationFramework": "actscope.compat.framework:InstrumentationFramework",
        "PacketStreamWriter": "actscope.compat.packet_stream:PacketStreamWriter",
        "analyze_activations": "actscope.compat.analysis:analyze_activations",
        "analyze_activations_with_tokens": "actscope.compat.analysis:analyze_activations_with_tokens",
        "capture_activations": "actscope.compat.framework:capture_activations",
        "create_optimized_config": "actscope.compat.auto_detect:create_optimized_config",
        "detect_model_architecture": "actscope.compat.auto_detect:detect_model_architecture",
        "read_packet_stream": "actscope.compat.packet_stream:read_packet_stream",
        "unpack_packet_stream": "actscope.compat.packet_stream:unpack_packet_stream",
    },
)
