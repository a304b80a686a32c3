"""Real OpenAI clients against the gateway in front of the scripted engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gateway.conformance import OpenAIConformance, sync_client
from support.gateway.stage import Place

__all__ = ["TestScriptedEngine", "TestScriptedStages", "TestScriptedVllm", "sync_client"]


@pytest.fixture
def node_project() -> Path:
    """The Node client's folder; `npm ci` there installs what its lock file names."""
    project = Path(__file__).parent / "node"
    if not (project / "node_modules" / "openai").is_dir():
        pytest.skip("openai-node is not installed: `npm ci` in tests/gateway/node")
    return project


class TestScriptedEngine(OpenAIConformance):
    """The whole suite."""


class TestScriptedVllm(OpenAIConformance):
    """The whole suite, in front of an engine that shows itself as vLLM's plugin does."""

    @pytest.fixture
    def place(self, vllm_place: Place) -> Place:
        return vllm_place


class TestScriptedStages(OpenAIConformance):
    """The whole suite, in front of one in two stages."""

    @pytest.fixture
    def place(self, parts_place: Place) -> Place:
        return parts_place
