"""What the machine was doing: block I/O, scheduling, page faults and pressure, on the clock of recordings.

sources/    counts: programs in the kernel (bpf/), /proc, sysfs
meters      differences of counts, as lines; what is missing here, and the command that helps
collect     lines at intervals, to a file (writer) and to the terminal
reader      files of measurements, also of older tools
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.metrics.meters import IoMeter, SystemMeter
    from actscope.metrics.reader import MeasurementFile, read_measurements

__all__ = ["IoMeter", "MeasurementFile", "SystemMeter", "read_measurements"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "IoMeter": "actscope.metrics.meters:IoMeter",
        "MeasurementFile": "actscope.metrics.reader:MeasurementFile",
        "SystemMeter": "actscope.metrics.meters:SystemMeter",
        "read_measurements": "actscope.metrics.reader:read_measurements",
    },
)
