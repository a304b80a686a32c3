"""Stands before the real torchvision, whose wheel fits no torch of vLLM on a CPU: declares its operators, then becomes it.

Found only by processes that have this folder on PYTHONPATH, with the folder of the real one behind it. Its operators
have no code: the rest of it is Python.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

_folder = Path(sys.prefix) / "vision" / "torchvision"
_spec = importlib.util.spec_from_file_location(
    "torchvision", _folder / "__init__.py", submodule_search_locations=[str(_folder)]
)
assert _spec is not None and _spec.loader is not None
sys.modules["torchvision"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["torchvision"])
