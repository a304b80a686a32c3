"""Probes: linear directions that turn an activation row into a score. Load, fit and score them; numpy only."""

from actscope.probes.bank import Bank, ProbedModel
from actscope.probes.format import (
    Probe,
    ProbeInfo,
    find_probes,
    load_probe,
    load_probes,
    log_left_out,
    probe_from_json,
    save_probe,
)
from actscope.probes.importing import from_sklearn, import_probes
from actscope.probes.score import ACTIVATIONS, score

__all__ = [
    "ACTIVATIONS",
    "Bank",
    "Probe",
    "ProbeInfo",
    "ProbedModel",
    "find_probes",
    "from_sklearn",
    "import_probes",
    "load_probe",
    "load_probes",
    "log_left_out",
    "probe_from_json",
    "save_probe",
    "score",
]
