"""Write repeng-0.4.gguf: a control vector that the real repeng trains and exports.

pip install repeng==0.4.0 gguf==0.19.0; PYTHONPATH=tests python tests/data/make_repeng.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

np.float_ = np.float64  # type: ignore[attr-defined]  # the name that repeng 0.4.0 still uses
from repeng import ControlModel, ControlVector, DatasetEntry  # type: ignore[import-not-found]  # noqa: E402
from support.probes.contrast import N_LAYERS, pairs, tiny_llama, words  # noqa: E402

model = ControlModel(tiny_llama(), list(range(1, N_LAYERS)))
dataset = [DatasetEntry(positive=positive, negative=negative) for positive, negative in pairs()]
vector = ControlVector.train(model, words(), dataset)
vector.export_gguf(Path(__file__).with_name("repeng-0.4.gguf"))
