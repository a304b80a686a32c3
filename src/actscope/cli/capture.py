"""actscope capture: run prompts through a model, and record what its layers compute."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actscope.cli import options
from actscope.errors import SettingsError

if TYPE_CHECKING:
    from actscope.engines.inline.prompts import Prompt
    from actscope.engines.inline.stats import CaptureStats
    from actscope.recording.reader import Recording


def capture(
    model: Annotated[str, typer.Argument(help="Hugging Face id, a local directory, or actscope/builtin.")],
    prompts: Annotated[
        str, typer.Argument(help="A text file, one prompt a line, or JSON lines; - reads standard input.")
    ],
    to: Annotated[Path, typer.Option(help="Directory of the recording.")],
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Generate up to so many tokens; 0 only reads the prompts.")
    ] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Prompts that run together.")] = 8,
    preset: Annotated[
        str,
        typer.Option(help="fast_capture, max, balanced, max_compression, attention_analysis or mlp_analysis."),
    ] = "balanced",
    sites: Annotated[str, typer.Option(help="e.g. all, 0,7,15, first,middle,last, model.layers.*.mlp.")] = "",
    codec: Annotated[str, typer.Option(help="none, lz4, zstd, lossless, error_bounded:1e-3, svd:256, auto …")] = "",
    granularity: Annotated[str, typer.Option(help="full, attention, mlp, or e.g. sampled:8+last=1.")] = "",
    sample: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the prompts to record, by their ids.")
    ] = 1.0,
    policy: Annotated[str, typer.Option(help="When the disk is too slow: block, drop or error.")] = "",
    memory: Annotated[str, typer.Option(help="Bound of rows in memory, e.g. 2GB.")] = "",
    resume: Annotated[
        bool, typer.Option(help="Go on with a recording; prompts that it has whole are skipped.")
    ] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run prompts through a model, and record what its layers compute, with exact labels.

    A line of JSON is {"id": "...", "prompt": "..."} or {"text": "..."}. Answers are generated greedily. The recording is
    read with actscope.open(DIR), or shown by: actscope info DIR

    Example: actscope capture actscope/builtin prompts.txt --to run.acts --sites first,middle,last
    """
    from actscope.engines.inline.config import CaptureConfig
    from actscope.engines.inline.prompts import read_prompts

    given = {"sites": sites, "codec": codec, "granularity": granularity, "policy": policy, "memory": memory}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value}
    config = CaptureConfig.preset(preset).override({**changes, "sample": sample})
    wanted = read_prompts(_lines(prompts), prompts)
    todo = _missing(to, wanted) if resume else wanted
    if todo:
        _record(model, todo, to, config, max_tokens, batch, resume=resume, device=device, dtype=dtype)
    else:
        typer.echo(f"{to} has all {len(wanted)} prompts already", err=True)
    _tell(to, len(todo), len(wanted) - len(todo), as_json)


def _record(
    model: str,
    todo: list[Prompt],
    to: Path,
    config: Any,
    max_tokens: int,
    batch: int,
    *,
    resume: bool,
    device: str,
    dtype: str,
) -> None:
    from actscope.cli.progress import Progress
    from actscope.engines.hf.loading import load
    from actscope.engines.inline.prompts import run_prompts
    from actscope.engines.inline.session import Capture

    loaded = load(model, device=device, dtype=dtype)
    session = Capture(loaded.model, to, config, resume=resume, tokenizer=loaded.tokenizer)
    with Progress() as progress, session:
        run_prompts(
            loaded,
            todo,
            session,
            max_tokens=max_tokens,
            batch=batch,
            progress=lambda done, total: progress.update("prompts", done, total),
        )
    _warn(session.stats())


def _lines(prompts: str) -> list[str]:
    if prompts == "-":
        return sys.stdin.read().splitlines()
    try:
        return Path(prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{prompts}: cannot be read: {error}") from error


def _missing(to: Path, wanted: list[Prompt]) -> list[Prompt]:
    """Prompts that the recording does not have whole; all of them where there is no recording."""
    from actscope.recording.reader import Recording

    if not (to / "manifest.json").exists():
        return wanted
    recording = Recording.open(to)
    summaries = [recording.request(name) for name in recording.requests]
    whole = {summary.id for summary in summaries if summary.ended and not summary.aborted}
    return [prompt for prompt in wanted if prompt.id not in whole]


def _warn(stats: CaptureStats) -> None:
    lost = getattr(stats.recorder, "dropped_rows", 0)
    if stats.unowned_rows or stats.faults or lost:
        typer.echo(
            f"not recorded: {stats.unowned_rows} rows whose labels were not certain, {lost} rows dropped, "
            f"{stats.faults} faults",
            err=True,
        )


def _tell(to: Path, run: int, skipped: int, as_json: bool) -> None:
    from actscope.recording.reader import Recording

    summary = {"path": str(to), "run": run, "skipped": skipped, **summary_of(Recording.open(to))}
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(
        f"{to}: {summary['tokens']} tokens of {summary['requests']} requests at {summary['sites']} sites\n"
        f"{summary['bytes_per_token']:.0f} bytes a token, {summary['ratio_source']:.2f}x smaller than computed, "
        f"{summary['ratio_fp32']:.2f}x smaller than fp32\n"
        f"relative error of a row: mean {summary['error_mean']:.2g}, worst {summary['error_worst']:.2g}"
    )


def summary_of(recording: Recording) -> dict[str, Any]:
    """Counts, sizes and errors of a recording. Ratios are of rows only, bytes per token of the rows' blocks."""
    sizes = [recording[site].sizes() for site in recording.sites]
    errors = [recording[site].errors() for site in recording.sites]
    stored = sum(size.stored for size in sizes)
    rows = sum(error.rows for error in errors)
    return {
        "requests": len(recording.requests),
        "tokens": recording.n_rows,
        "sites": len(recording.sites),
        "stored_bytes": stored,
        "bytes_per_token": stored / max(1, recording.n_rows),
        "ratio_source": sum(size.source for size in sizes) / max(1, stored),
        "ratio_fp32": sum(size.fp32 for size in sizes) / max(1, stored),
        "error_mean": sum(error.mean * error.rows for error in errors) / max(1, rows),
        "error_worst": max((error.worst for error in errors), default=0.0),
        "complete": recording.complete,
    }
