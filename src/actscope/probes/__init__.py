"""Probes: directions that turn a row into a score. Reading, fitting and scoring them; numpy only."""

from actscope.probes.bank import Bank, ProbedModel
from actscope.probes.format import Probe, ProbeInfo, find_probes, load_probe, load_probes, probe_from_json, save_probe
from actscope.probes.score import ACTIVATIONS, score

__all__ = [
    "ACTIVATIONS",
    "Bank",
    "Probe",
    "ProbeInfo",
    "ProbedModel",
    "find_probes",
    "load_probe",
    "load_probes",
    "probe_from_json",
    "save_probe",
    "score",
]
