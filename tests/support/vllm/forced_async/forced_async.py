"""A vLLM plugin that keeps asynchronous scheduling on: vLLM turns it off on CPU, where it brings nothing, but it runs there.

Found by its entry point, and only by processes that have this folder on PYTHONPATH.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Once per process, as vLLM loads plugins more than once."""
    from vllm.platforms.cpu import CpuPlatform

    given = CpuPlatform.check_and_update_config.__func__
    if given.__module__ == __name__:
        return

    def check_and_update_config(platform: type[CpuPlatform], config: Any) -> None:
        given(platform, config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
