"""NVIDIA GPUs of this machine, read with NVML where the package `nvidia-ml-py` and a driver are installed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import ModuleType

from prometheus_client.core import GaugeMetricFamily, Metric

_log = logging.getLogger(__name__)

_GAUGES: dict[str, tuple[str, Callable[[ModuleType, object], float]]] = {
    "utilization_ratio": (
        "Share of the last sampling period in which a kernel ran, 0 to 1.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    "memory_used_bytes": (
        "Memory of the GPU in use, in bytes.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    "memory_bytes": ("Memory of the GPU, in bytes.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    "power_watts": (
        "Power that the GPU draws, in watts.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    "temperature_celsius": (
        "Temperature of the GPU, in degrees Celsius.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
}


class Gpus:
    """The machine's GPUs. NVML is opened at the first scrape; without it there are no families and no errors."""

    def __init__(self) -> None:
        self._nvml: ModuleType | None = None
        self._looked = False

    def families(self) -> Iterator[Metric]:
        """Yield `actscope_gpu_…` with a sample for each GPU. A value that a GPU does not have is left out. May block for ms."""
        nvml = self._open()
        if nvml is None:
            return
        try:
            gpus = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            names = [(str(i), _text(nvml.nvmlDeviceGetName(gpu))) for i, gpu in enumerate(gpus)]
        except nvml.NVMLError as error:
            _log.warning("the GPUs cannot be read: %s", error)
            return
        for name, (help, read) in _GAUGES.items():
            family = GaugeMetricFamily(f"actscope_gpu_{name}", help, labels=("gpu", "model"))
            for labels, gpu in zip(names, gpus, strict=True):
                try:
                    family.add_metric(labels, read(nvml, gpu))
                except nvml.NVMLError:
                    continue  # the device does not have it: some boards measure no power
            yield family

    def _open(self) -> ModuleType | None:
        if not self._looked:
            self._looked = True
            try:
                import pynvml

                pynvml.nvmlInit()
            except ImportError:
                return None
            except pynvml.NVMLError as error:
                _log.info("no GPU metrics: %s", error)
                return None
            self._nvml = pynvml
        return self._nvml


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
