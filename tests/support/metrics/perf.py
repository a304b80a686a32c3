"""What perf's tracepoints say of requests that we make: run in a process that sees tracefs."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

from support.metrics.machine import DirectFile

from actscope.metrics.meters import IoMeter
from actscope.metrics.sources.diskstats import read_diskstats


def count(name: str) -> None:
    """Write 300 times and read 100 times on a loop device, and print what was measured of it as JSON."""
    with closing(IoMeter("perf")) as meter:
        meter.measure()
        before = read_diskstats()[name]
        file = DirectFile(Path("/dev") / name)
        for i in range(100):
            file.write(i)
            file.write(i + 100, 3)
            file.write(i + 300)
            file.read(i)
        file.close()
        time.sleep(0.2)
        kernel = read_diskstats()[name].since(before).total
        line = meter.measure()
    (row,) = [one for one in line.latency_histogram if one.device_name == name]
    found = {
        "lost": line.lost_events, "kernel": kernel, "source": row.source,
        "operations": {kind: one.count for kind, one in row.operations.items()},
        "in_histogram": sum(bucket.count for bucket in row.buckets),
    }  # fmt: skip
    print(json.dumps(found))
