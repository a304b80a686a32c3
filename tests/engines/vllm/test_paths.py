"""Every route of vLLM's server is passed on by the gateway, or is named here with the reason why it is not."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from actscope.gateway.api.routes.proxied import PATHS

_DECORATORS = {"get", "post", "put", "delete", "patch", "api_route", "websocket"}
#: Paths outside of /v1 that change the server, or show its insides.
ADMINISTRATIVE = {
    "/abort_requests", "/collective_rpc", "/fault_tolerance/apply", "/fault_tolerance/status", "/finish_weight_update",
    "/get_world_size", "/inference/v1/abort_requests", "/init_weight_transfer_engine", "/is_paused", "/is_scaling_elastic_ep",
    "/is_sleeping", "/kv_event_sources", "/pause", "/release_kv_cache_memory", "/reset_encoder_cache", "/reset_mm_cache",
    "/reset_prefix_cache", "/resume", "/scale_elastic_ep", "/server_info", "/shutdown_weight_transfer_engine", "/sleep",
    "/start_draft_weight_update", "/start_profile", "/start_weight_update", "/stop_profile", "/update_weight_version",
    "/update_weights", "/wake_up", "/weight_checker", "/weight_info",
}  # fmt: skip
#: Paths that the gateway serves itself, those of a supervisor of its own port, and the documentation page of vLLM.
OWN = {"/health", "/ready", "/readyz", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}


def routes() -> Iterator[str]:
    """The path of each route that vLLM's sources declare."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        for file in Path(folder, "entrypoints").rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in _DECORATORS
                ):
                    first = node.args[0] if node.args else None
                    if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value[:1] == "/":
                        yield first.value


def test_the_routes_of_vllm_outside_of_v1_are_passed_on_or_named() -> None:
    """A new version of vLLM with a route that nobody has looked at fails here."""
    found = {path for path in routes() if not path.startswith("/v1/")}
    assert found - set(PATHS) - ADMINISTRATIVE - OWN == set()
    assert set(PATHS) - found == set()
    assert not ADMINISTRATIVE & set(PATHS)
