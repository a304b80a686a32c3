"""Lines as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from actscope.metrics.lines import CollectorCost, IoLine, LatencyBucket, OperationTotals, SystemLine
from actscope.runtime.printable import one_line

_MOST_PROCESSES = 8


def quantile_us(buckets: Sequence[LatencyBucket], share: float) -> int:
    """Return the upper end of the bucket, in µs, below which a share of the requests lie; 0 if there are none."""
    wanted = share * sum(bucket.count for bucket in buckets)
    seen = 0
    for bucket in buckets:
        seen += bucket.count
        if seen >= wanted:
            return bucket.bucket_high
    return 0


def io_text(line: IoLine) -> str:
    """Return a line of block I/O as text: a row for each device that did something."""
    in_flight = {one.device_name: one.count for one in line.inflight}
    rows = [_head(line.iso_timestamp, line.source, line.interval_s)]
    for one in line.latency_histogram:
        name = one.device_name + (
            f" ({one.kind}{' ' + one.label if one.label else ''})" if one.kind not in ("", "disk") else ""
        )
        name += f" on {', '.join(one.parents)}" if one.parents else ""
        counts = "  ".join(
            f"{operation} {totals.count} ({totals.bytes / 1e6:.1f} MB)"
            if totals.bytes
            else f"{operation} {totals.count}"
            for operation, totals in one.operations.items()
        )
        times = (
            f"p50 <= {_us(quantile_us(one.buckets, 0.5))}  p99 <= {_us(quantile_us(one.buckets, 0.99))}"
            if one.buckets
            else f"mean {_us(_mean_us(one.operations))}"
        )
        depth = f"depth {one.mean_in_flight:.2f}" if one.mean_in_flight is not None else ""
        rows.append(one_line(f"  {name:<24} {counts}  {times}  {depth}  in flight {in_flight.get(one.device_name, 0)}"))
    if not line.latency_histogram:
        rows.append("  no device did anything")
    rows += [one_line(f"  recording {one.path}: {' on '.join(one.devices) or 'in memory'}") for one in line.recordings]
    return "\n".join([*rows, *_tail(line.lost_events, line.losses, line.cost)])


def system_text(line: SystemLine) -> str:
    """Return a line of CPU, memory and pressure as text: the watched processes, then those held up longest.

    Held up is who could run, or waits for a disk or a page. Idle processes wait for locks and for others.
    """
    rows = [_head(line.iso_timestamp, line.source, line.interval_s)]
    for resource, shares in line.pressure.items():
        some = getattr(shares.get("some"), "avg10", None) if isinstance(shares, dict) else None
        rows += [f"  pressure {resource:<7} some {some:.2f} % of the last 10 s"] if some else []
    held = ("runnable", "io", "fault")
    order = sorted(
        line.processes.items(),
        key=lambda item: (not item[1].found_as, -sum(item[1].off_cpu_ns.get(cause, 0) for cause in held)),
    )
    for pid, one in order[:_MOST_PROCESSES]:
        causes = "  ".join(f"{cause} {ns / 1e6:.1f} ms" for cause, ns in one.off_cpu_ns.items())
        faults = line.page_faults.get(pid, 0)
        rows.append(
            one_line(
                f"  {pid:>7} {one.name:<16} {causes}  faults {faults:g}"
                + (f"  [{one.found_as}]" if one.found_as else "")
            )
        )
    more = len(order) - _MOST_PROCESSES
    rows += [f"  and {more} more processes (--json, or the file, has all)"] if more > 0 else []
    return "\n".join([*rows, *_tail(line.lost_events, line.losses, line.cost)])


def _head(when: str, source: str, seconds: float) -> str:
    return f"{when[11:19]}  {seconds:.2f} s  by {source}"


def _tail(lost: int, losses: dict[str, int], cost: CollectorCost | None) -> list[str]:
    rows = []
    if lost:
        rows.append(f"  lost events: {lost} ({', '.join(f'{name} {n}' for name, n in losses.items())})")
    if cost is not None:
        kernel = "not timed" if cost.kernel_percent is None else f"{cost.kernel_percent:.3f} %"
        runs = sum(one.runs for one in cost.programs.values())
        rows.append(
            f"  cost: {cost.cpu_percent:.3f} % of a core (process {cost.process_percent:.3f} %, kernel {kernel}, {runs} runs), "
            f"{cost.memory_mb:.0f} MB"
        )
    return rows


def _mean_us(operations: dict[str, OperationTotals]) -> float:
    count = sum(one.count for one in operations.values())
    return sum(one.count * one.latency_us for one in operations.values()) / count if count else 0.0


def _us(us: float) -> str:
    return f"{us / 1000:.1f} ms" if us >= 1000 else f"{us:.0f} us"
