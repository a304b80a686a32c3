"""Histograms count exactly and are bounded; no family is defined twice; labels are escaped; text parses in both formats."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from actscope.serving.telemetry.exposition import one_of, rendered
from actscope.serving.telemetry.gpus import Gpus
from actscope.serving.telemetry.histograms import OTHER, Histograms
from actscope.serving.telemetry.processes import ShownProcess, process_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def parsed(families: Iterable[Metric]) -> list[Metric]:
    """What a client of OpenMetrics reads; one of the older text must read the same values."""
    families = list(families)
    text, media_type = rendered(families, OPENMETRICS)
    assert media_type.startswith("application/openmetrics-text")
    found: list[Metric] = list(parse_openmetrics(text.decode()))  # type: ignore[no-untyped-call]
    plain, media_type = rendered(families, "text/plain")
    assert media_type.startswith("text/plain; version=0.0.4")
    older = {s.name: s.value for m in parse_text(plain.decode()) for s in m.samples}
    assert older == {s.name: s.value for m in found for s in m.samples}
    return found


@given(st.lists(st.floats(-3, 3, width=32), max_size=40), st.lists(st.floats(-3, 3, width=32), max_size=5))
def test_a_histogram_counts_every_value_in_the_first_bucket_that_reaches_it(
    first: list[float], more: list[float]
) -> None:
    edges = (-1.0, 0.0, 0.5)
    histogram = Histograms("h", "Values.", ("probe",), edges, 4)
    for values in (first, more):
        histogram.add(("p",), np.array(values, np.float32), "r")
    found = {s.labels["le"]: s.value for s in histogram.family().samples}
    every = np.array(first + more, np.float64)
    if len(every):
        assert found == {
            "-1.0": (every <= -1).sum(),
            "0.0": (every <= 0).sum(),
            "0.5": (every <= 0.5).sum(),
            "+Inf": len(every),
        }
    else:
        assert found == {}


def test_values_that_are_not_finite_are_not_counted() -> None:
    histogram = Histograms("h", "Values.", ("probe",), (0.0, 1.0), 4)
    histogram.add(("p",), np.array([np.nan, np.inf, -np.inf, 0.5], np.float32))
    [metric] = parsed([histogram.family()])
    assert {s.name: s.value for s in metric.samples if s.name != "h_bucket"} == {"h_count": 1, "h_sum": 0.5}


def test_an_exemplar_names_the_last_request_of_its_bucket() -> None:
    """None for an id that OpenMetrics has no room for."""
    histogram = Histograms("h", "Values.", ("probe",), (0.0, 1.0), 4)
    histogram.add(("p",), np.array([0.25, 0.5]), "one")
    histogram.add(("p",), np.array([2.0]), 'a "quoted"\\ id\n')
    histogram.add(("p",), np.array([-1.0]), "x" * 200)
    [metric] = parsed([histogram.family()])
    found = {s.labels["le"]: s.exemplar for s in metric.samples if s.name == "h_bucket" and s.exemplar}
    assert found.keys() == {"1.0", "+Inf"}
    assert (found["1.0"].labels, found["1.0"].value) == ({"request_id": "one"}, 0.5)
    assert found["+Inf"].labels == {"request_id": 'a "quoted"\\ id\n'}


def test_the_number_of_series_is_bounded() -> None:
    """All label values after the first ones are counted together."""
    histogram = Histograms("h", "Values.", ("probe",), (0.0,), 3)
    for n in range(10):
        histogram.add((f"p{n}",), np.ones(1))
    counts = {s.labels["probe"]: s.value for s in histogram.family().samples if s.labels.get("le") == "+Inf"}
    assert counts == {"p0": 1, "p1": 1, "p2": 1, OTHER: 7}


def test_label_values_are_escaped() -> None:
    nasty = 'a"b\\c\nd{e="f"} 1\n# EOF'
    family = GaugeMetricFamily("g", "Help \\ with\nlines.", labels=("group",))
    family.add_metric((nasty,), 1)
    [found] = parsed([family])
    assert [s.labels for s in found.samples] == [{"group": nasty}]


def test_no_family_is_defined_twice() -> None:
    """The first of those with one name, or with the name of a sample of an earlier one, is shown."""
    families = [
        CounterMetricFamily("a", "First.", value=1),
        GaugeMetricFamily("a", "Second.", value=2),
        GaugeMetricFamily("a_total", "Third.", value=3),
        GaugeMetricFamily("b", "Fourth.", value=4),
    ]
    assert [(m.name, m.documentation) for m in parsed(families)] == [("a", "First."), ("b", "Fourth.")]


def test_a_state_is_one_of_all_states() -> None:
    [metric] = parsed([one_of("state", "State.", "state", ("on", "off"), "off")])
    assert {s.labels["state"]: s.value for s in metric.samples} == {"on": 0, "off": 1}


def test_processes_that_have_ended_are_left_out() -> None:
    families = process_families([ShownProcess("test", os.getpid()), ShownProcess("gone", 2**30, "card", 1)])
    found = {m.name: m for m in parsed(families)}
    assert [s.labels["process"] for s in found["actscope_process_cpu_seconds"].samples] == ["test"]
    assert found["actscope_process_resident_memory_bytes"].samples[0].value > 1e6


class NVMLError(Exception):
    """As pynvml raises."""


def nvml(*, broken: bool) -> ModuleType:
    """NVML of a machine with two GPUs that measure no power."""
    module = ModuleType("pynvml")
    rates, memory = type("Rates", (), {"gpu": 25}), type("Memory", (), {"used": 10, "total": 40})

    def refuse(*given: object) -> None:
        raise NVMLError("not supported")

    made: dict[str, object] = {
        "NVMLError": NVMLError, "NVML_TEMPERATURE_GPU": 0, "nvmlInit": refuse if broken else lambda: None,
        "nvmlDeviceGetCount": lambda: 2, "nvmlDeviceGetHandleByIndex": lambda i: i, "nvmlDeviceGetName": lambda gpu: b"H200",
        "nvmlDeviceGetUtilizationRates": lambda gpu: rates, "nvmlDeviceGetMemoryInfo": lambda gpu: memory,
        "nvmlDeviceGetPowerUsage": refuse, "nvmlDeviceGetTemperature": lambda gpu, kind: 55,
    }  # fmt: skip
    vars(module).update(made)
    return module


def test_gpus_are_shown_with_what_they_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(broken=False))
    found = {m.name: m.samples for m in parsed(Gpus().families())}
    assert [s.value for s in found["actscope_gpu_utilization_ratio"]] == [0.25, 0.25]
    assert [s.labels for s in found["actscope_gpu_memory_bytes"]] == [
        {"gpu": "0", "model": "H200"},
        {"gpu": "1", "model": "H200"},
    ]
    assert found["actscope_gpu_power_watts"] == []


def test_without_a_driver_or_the_package_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(broken=True))
    assert list(Gpus().families()) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert list(Gpus().families()) == []
