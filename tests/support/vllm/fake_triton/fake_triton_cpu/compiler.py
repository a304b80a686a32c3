"""A compiler that only says whom it is for; Inductor asks for its hash."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget


class CpuBackend(BaseBackend):  # type: ignore[misc]  # triton is not typed
    """Compiles nothing."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        return "interpreted"

    def parse_options(self, options: dict[str, Any]) -> object:
        raise NotImplementedError("kernels are interpreted; nothing is compiled")

    def add_stages(self, stages: dict[str, Any], options: object, language: Any) -> None:
        raise NotImplementedError("kernels are interpreted; nothing is compiled")

    def load_dialects(self, context: Any) -> None:
        raise NotImplementedError("kernels are interpreted; nothing is compiled")

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}
