"""actscope info: print a summary of a recording."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from actscope.cli.common import options
from actscope.cli.common.output import legible, show
from actscope.cli.common.recordings import Directory, open_recording

_MOST_MARKS = 5


def info(
    path: Directory,
    requests: Annotated[int, typer.Option(min=0, metavar="N", help="Number of requests to list. 0 lists all.")] = 5,
    as_json: options.Json = False,
) -> None:
    """Summarize a recording: model, sites, requests, coverage, size relative to raw rows, measured errors, drops and marks.

    Works while the recording is being written, and after a crash. Reads no rows.

    Example: actscope info run.acts
    """
    described = open_recording(path).describe(requests)
    show(json.dumps(described) if as_json else _text(legible(described)))


def _text(found: dict[str, Any]) -> str:
    model, tokens = found["model"], found["tokens"]
    coverage = f" ({_percent(tokens['coverage'])})" if tokens["coverage"] is not None else ""
    known = "" if found["complete"] else "known "  # of requests that were running, no more is known
    over = found["rows_after_end"]
    state = (
        "complete" if found["complete"] else "not complete: a writer is running, has crashed, or found the disk full"
    )
    direct = {None: "", True: "; direct I/O", False: "; buffered I/O"}[found["direct_io"]]
    lines = [
        f"{found['path']}",
        f"  model      {model.get('name') or '-'} {model.get('revision') or ''}".rstrip(),
        f"  tokens     {tokens['computed']} of {tokens['present']} {known}positions computed{coverage}, "
        f"{found['n_requests']} requests",
        f"  rows       {found['rows']} at each of {len(found['sites'])} sites"
        + (f"; {over} after a request's end" if over else ""),
        *(
            [f"  missing    {_missing(found['rows_missing'], complete=found['complete'])}"]
            if found["rows_missing"]
            else []
        ),
        f"  size       {_mib(found['bytes'])} on disk, "
        f"{_number(found['bytes_per_token'], '.0f')} bytes per row, all sites together",
        f"  smaller    {_number(found['ratio_fp32'], '.2f')} x than float32, "
        f"{_number(found['ratio_source'], '.2f')} x than the source dtype",
        f"  sessions   {found['sessions']}; {state}{direct}",
        f"  dropped    {_dropped(found['dropped_rows'])}",
        f"  marks      {len(found['marks'])}",
        *(f"    {mark['request']}: {mark['why']}" for mark in found["marks"][:_MOST_MARKS]),
        *(
            [f"    and {len(found['marks']) - _MOST_MARKS} more (--json has all)"]
            if len(found["marks"]) > _MOST_MARKS
            else []
        ),
        "",
        *_site_lines(found["sites"]),
        "",
        *_error_lines(found["sites"]),
        *_request_lines(found),
    ]
    if found["damage"]:
        lines += ["", "damage:", *(f"  {damage['says']}" for damage in found["damage"])]
    return "\n".join(lines)


def _site_lines(sites: dict[str, Any]) -> list[str]:
    name_width = max(map(len, sites), default=4)
    lines = [f"{'site':<{name_width}} {'rows':>8} {'width':>6} {'dtype':<8} {'/fp32':>6} {'/src':>6}  codec"]
    for name, site in sites.items():
        ratios = f"{_number(site['ratio_fp32'], '.2f'):>6} {_number(site['ratio_source'], '.2f'):>6}"
        lines.append(
            f"{name:<{name_width}} {site['rows']:>8} {site['width']:>6} {site['dtype']:<8} {ratios}  "
            f"{'+'.join(site['codecs_used']) or '-'}"
        )
    return lines


def _error_lines(sites: dict[str, Any]) -> list[str]:
    """Format the measured errors of the codecs. Empty without rows."""
    errors = {name: site["error"] for name, site in sites.items()}
    lossy = {name: error for name, error in errors.items() if error["worst"]}
    if not lossy:
        return ["every row is bit-exact (lossless)", ""] if any(error["rows"] for error in errors.values()) else []
    width = max(27, *map(len, lossy))
    lines = [f"{'measured error of a row':<{width}} {'mean':>9} {'p99.9':>9} {'worst':>9}"]
    for name, error in lossy.items():
        lines.append(f"{name:<{width}} {error['mean']:>9.2e} {error['p999']:>9.2e} {error['worst']:>9.2e}")
    rest = "rows of the other sites are bit-exact (lossless)"
    return [*lines, *[rest] * (len(lossy) < len(errors)), ""]


def _request_lines(found: dict[str, Any]) -> list[str]:
    if not found["requests"]:
        return ["no request has been recorded"]
    width = max(7, *(len(request["id"]) for request in found["requests"]))
    lines = [f"{'request':<{width}} {'prompt':>6} {'present':>7} {'computed':>8}  state"]
    for request in found["requests"]:
        state = ("aborted" if request["aborted"] else "ended") if request["ended"] else "no end seen"
        counts = f"{request['n_prompt']:>6} {request['present']:>7} {request['computed']:>8}"
        lines.append(f"{request['id']:<{width}} {counts}  {state}")
    more = found["n_requests"] - len(found["requests"])
    return [*lines, f"and {more} more (--requests 0 shows all)"] if more > 0 else lines


def _percent(coverage: float) -> str:
    """Format a coverage, rounded down: only what is whole has 100 %."""
    return f"{int(1000 * coverage) / 10:.1f}%"


def _missing(rows: int, *, complete: bool) -> str:
    why = "they were dropped" if complete else "they were not written before the recording stopped"
    return f"{rows} rows have a label, and no values at some site: {why}"


def _dropped(dropped: dict[str, int]) -> str:
    return ", ".join(f"{rows} rows of {site}" for site, rows in dropped.items()) or "nothing"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.1f} KiB"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
