"""actscope capture: run prompts through a model and record its activations."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actscope.capture.config import CaptureConfig
from actscope.cli.common import options
from actscope.cli.common.output import show
from actscope.cli.common.packages import require_model
from actscope.cli.common.settings_options import Given, with_settings
from actscope.errors import ActscopeError, SettingsError
from actscope.extras import RECORDING

if TYPE_CHECKING:
    from actscope.capture.prompts import Prompt
    from actscope.capture.session import Capture
    from actscope.capture.stats import CaptureStats
    from actscope.engines.hf.loading import LoadedModel


@with_settings
def capture(
    model: options.Model,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS", help="File with one prompt per line, as text or JSON. - reads standard input."
        ),
    ],
    to: Annotated[Path, typer.Option(help="Directory of the recording to create.", metavar="DIR")],
    flags: Annotated[Given, options.CAPTURE],
    engine_flags: Annotated[Given, options.ENGINE.only("device", "dtype", "trust_remote_code")],
    max_tokens: Annotated[
        int, typer.Option(min=0, metavar="N", help="Maximum number of tokens to generate. 0 only reads the prompts.")
    ] = 64,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Number of prompts that run together.")] = 8,
    preset: Annotated[
        str,
        typer.Option(
            metavar="PRESET", help="fast_capture, max, balanced, max_compression, attention_analysis or mlp_analysis."
        ),
    ] = "balanced",
    resume: Annotated[
        bool, typer.Option(help="Continue a recording. Prompts that are complete in it are skipped.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run prompts through a model, and record what its layers compute, with exact labels.

    A line of JSON is {"id": "...", "prompt": "..."} or {"text": "..."}. Answers are generated greedily. A preset changes some
    defaults, and flags override it. Read the recording with actscope.open(DIR), or with: actscope info DIR

    Example: actscope capture actscope/builtin prompts.txt --to run.acts --sites first,middle,last
    """
    require_model(model, *RECORDING)
    from actscope.capture.prompts import read_prompts
    from actscope.codecs import encoder
    from actscope.sampling import keeps

    chosen = CaptureConfig.preset(preset)
    config = options.CAPTURE.make(flags, lambda **values: chosen.override(values))
    encoder(config.codec)  # raises before the model is loaded or a file is created
    _check_place(to, resume=resume)
    wanted = [prompt for prompt in read_prompts(_lines(prompts), prompts) if keeps(prompt.id, config.sample)]
    if not wanted:
        raise SettingsError(f"--sample {config.sample}: none of the prompts in {prompts} is in the sample")
    todo = _missing(to, wanted) if resume else wanted
    if todo:
        _record(model, todo, to, config, max_tokens, batch, resume=resume, placed=engine_flags)
    else:
        show(f"{to} contains all {len(wanted)} prompts already", err=True)
    _tell(to, len(todo), len(wanted) - len(todo), as_json)


def _check_place(to: Path, *, resume: bool) -> None:
    if to.exists() and not to.is_dir():
        raise SettingsError(f"--to {to}: is a file; expected a directory that is new, or empty")
    if not resume and to.is_dir() and any(to.iterdir()):
        raise SettingsError(
            f"--to {to}: is not empty; choose another directory, or continue the recording there with --resume"
        )


def _record(
    model: str,
    todo: list[Prompt],
    to: Path,
    config: CaptureConfig,
    max_tokens: int,
    batch: int,
    *,
    resume: bool,
    placed: Given,
) -> None:
    from actscope.capture.prompts import run_prompts
    from actscope.cli.common.progress import ProgressBar

    _log_plainly()
    loaded = _load(model, placed)
    session = _session(loaded, to, config, resume=resume)
    done = 0

    def told(so_far: int, total: int) -> None:
        nonlocal done
        done = so_far
        bars.update("prompts", so_far, total)

    try:
        with ProgressBar() as bars, session:
            run_prompts(loaded, todo, session, max_tokens=max_tokens, batch=batch, progress=told)
    except KeyboardInterrupt:
        show(
            f"interrupted: {to} has {done} of {len(todo)} prompts; repeat the command with --resume to continue",
            err=True,
        )
        raise
    _warn(session.stats())


def _session(loaded: LoadedModel, to: Path, config: CaptureConfig, *, resume: bool) -> Capture:
    """Open a capture. Its recording names the model as the user did, with its revision, so that probes for it match."""
    from actscope.capture.session import Capture

    facts = {"name": loaded.name, "revision": loaded.revision, "max_context": loaded.max_context}
    return Capture(loaded.model, to, config, resume=resume, tokenizer=loaded.tokenizer, model_facts=facts)


def _log_plainly() -> None:
    """Log warnings of the capture as one line each. Only errors other than `ActscopeError` get a traceback."""

    class Plain(logging.Formatter):
        def formatException(self, ei: Any) -> str:
            return "" if isinstance(ei[1], ActscopeError) else super().formatException(ei)

    handler = logging.StreamHandler()
    handler.setFormatter(Plain("actscope: %(message)s"))
    log = logging.getLogger("actscope")
    log.handlers[:], log.propagate = [handler], False


def _load(model: str, placed: Given) -> LoadedModel:
    """Load the model on the given device in the given dtype. Shows a spinner in place of transformers' own progress bars."""
    from rich.console import Console
    from transformers.utils import logging

    from actscope.engines.hf.loading import load

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with Console(stderr=True).status(f"loading {model} …"):
        loaded = load(model, **placed)
    return loaded


def _lines(prompts: str) -> list[str]:
    if prompts == "-":
        return sys.stdin.read().splitlines()
    try:
        return Path(prompts).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"{prompts}: cannot be read: {error.strerror}; expected a file of prompts, or -") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{prompts}: not UTF-8 text (byte {error.start}); expected one prompt per line") from error


def _missing(to: Path, wanted: list[Prompt]) -> list[Prompt]:
    """Return the prompts that are not complete in the recording. Without a recording, all of them."""
    from actscope.recording.reading.recording import Recording

    if not (to / "manifest.json").exists():
        return wanted
    recording = Recording.open(to)
    summaries = [recording.request(name) for name in recording.requests]
    whole = {summary.id for summary in summaries if summary.ended and not summary.aborted}
    return [prompt for prompt in wanted if prompt.id not in whole]


def _warn(stats: CaptureStats) -> None:
    lost = getattr(stats.recorder, "dropped_rows", 0)
    if stats.unowned_rows or stats.faults or lost:
        show(
            f"not recorded: {stats.unowned_rows} rows with uncertain labels, {lost} rows dropped, "
            f"{stats.faults} faults",
            err=True,
        )


def _tell(to: Path, run: int, skipped: int, as_json: bool) -> None:
    from actscope.recording.reading.recording import Recording

    summary = {"path": str(to), "run": run, "skipped": skipped, **Recording.open(to).summary()}
    if as_json:
        show(json.dumps(summary))
        return
    over, worst = summary["rows_after_end"], summary["error_worst"]
    show(
        f"{to}: {summary['tokens']} tokens of {summary['requests']} requests at {summary['sites']} sites\n"
        + (f"  {over} of them after the end of their answer, while the batch was still running\n" if over else "")
        + f"  {summary['bytes_per_token']:.0f} bytes per token, {summary['ratio_source']:.2f} x smaller than computed, "
        f"{summary['ratio_fp32']:.2f} x smaller than fp32\n"
        + (
            f"  error of a row: mean {summary['error_mean']:.2g}, worst {worst:.2g}"
            if worst
            else "  every row is bit-exact (lossless)"
        )
    )
