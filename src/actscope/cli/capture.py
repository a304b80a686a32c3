"""actscope capture: run prompts through a model and record its activations."""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actscope.capture.config import CaptureConfig
from actscope.cli.common import options
from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show
from actscope.cli.common.packages import require_model
from actscope.cli.common.settings_options import Given, with_settings
from actscope.errors import ActscopeError, RecordingPoisoned, SettingsError
from actscope.extras import RECORDING
from actscope.runtime.writable import check_can_create

if TYPE_CHECKING:
    from actscope.capture.prompts import Prompt
    from actscope.capture.session import Capture
    from actscope.capture.stats import CaptureStats
    from actscope.engines.hf.loading import LoadedModel
    from actscope.recording.reading.recording import Recording


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
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Send prompts as chat messages, by the model's chat template, or as they are. By default as chat where the "
            "model has a template.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Continue a recording. Prompts that are complete in it are skipped.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run prompts through a model, and record what its layers compute, with exact labels.

    A line of JSON is {"id": "...", "prompt": "..."}, {"text": "..."} or {"messages": [...]}. Answers are generated greedily. A
    preset changes some defaults, and flags override it. Read the recording with actscope.open(DIR), or with: actscope info DIR

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
        _record(model, todo, to, config, max_tokens, batch, resume=resume, chat=chat, placed=engine_flags)
    else:
        show(f"{to} contains all {len(wanted)} prompts already", err=True)
    _tell(to, len(todo), len(wanted) - len(todo), as_json)


def _check_place(to: Path, *, resume: bool) -> None:
    if to.exists() and not to.is_dir():
        raise SettingsError(f"--to {to}: is a file; expected a directory that is new, or empty")
    check_can_create(to, "--to", SettingsError)
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
    chat: bool | None,
    placed: Given,
) -> None:
    from actscope.capture.prompts import run_prompts, wants_chat
    from actscope.cli.common.progress import ProgressBar, load_with_spinner

    _log_plainly()
    with resumable(lambda: f"interrupted: {_kept(to, todo)}; repeat the command with --resume to continue"):
        loaded = load_with_spinner(model, placed)
        as_chat = wants_chat(loaded, chat, _was_chat(to) if resume else None)
        session = _session(loaded, to, config, resume=resume, chat=as_chat)
        _announce(config, as_chat)
        try:
            with ProgressBar() as bars, session:
                told = partial(bars.update, "prompts")
                run_prompts(loaded, todo, session, max_tokens=max_tokens, batch=batch, progress=told, chat=as_chat)
        except RecordingPoisoned as error:
            raise RecordingPoisoned(
                f"{error}\n{_kept(to, todo)}: make room, then repeat the command with --resume"
            ) from error
    _warn(session.stats())


def _was_chat(to: Path) -> bool | None:
    """Return whether the recording has chats; recordings of earlier versions have texts. None without a recording."""
    from actscope.recording.reading.recording import Recording

    return bool(Recording.open(to).info["model"].get("chat")) if (to / "manifest.json").exists() else None


def _announce(config: CaptureConfig, chat: bool) -> None:
    from actscope.codecs import rows_before_encoding

    how = "as chat messages, by the model's chat template (--no-chat: as they are)" if chat else "as they are"
    show(f"prompts are sent {how}", err=True)
    if rows := rows_before_encoding(config.codec):
        show(
            f"codec {config.codec}: the first {rows:,} rows of each site are stored losslessly, then its basis is fitted",
            err=True,
        )


def _session(loaded: LoadedModel, to: Path, config: CaptureConfig, *, resume: bool, chat: bool) -> Capture:
    """Open a capture. Its recording names the model as the user did, with its revision, so that probes for it match."""
    from actscope.capture.session import Capture

    facts = {"name": loaded.name, "revision": loaded.revision, "max_context": loaded.max_context, "chat": chat}
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
    return [p for p in wanted if p.id not in whole or recording.missing_rows(p.id)]


def _kept(to: Path, todo: list[Prompt]) -> str:
    """Say how many of the prompts are whole in the recording, for a command that ends early."""
    try:
        return f"{to} has {len(todo) - len(_missing(to, todo))} of {len(todo)} prompts"
    except ActscopeError as error:
        return f"{to} cannot be read ({error})"


def _warn(stats: CaptureStats) -> None:
    lost = getattr(stats.recorder, "dropped_rows", 0)
    if stats.unowned_rows or stats.faults or lost:
        show(
            f"not recorded: {stats.unowned_rows} rows with uncertain labels, {lost} rows dropped, "
            f"{stats.faults} faults",
            err=True,
        )


def _tell_unfitted(recording: Recording) -> None:
    """Name the sites whose codec has gathered too few rows to encode any."""
    waiting = {site: report for site, report in recording.codec_reports.items() if report.get("fits") == 0}
    if waiting:
        site, report = next(iter(waiting.items()))
        show(
            f"svd:{report['components']} encoded nothing at {site}"
            + (f" and {len(waiting) - 1} other sites" if len(waiting) > 1 else "")
            + f": {report['rows_until_fit']:,} more rows were needed to fit its basis, and all rows are stored losslessly",
            err=True,
        )


def _tell(to: Path, run: int, skipped: int, as_json: bool) -> None:
    from actscope.recording.reading.recording import Recording

    recording = Recording.open(to)
    chat = bool(recording.info["model"].get("chat"))
    _tell_unfitted(recording)
    summary = {"path": str(to), "run": run, "skipped": skipped, "chat": chat, **recording.summary()}
    if as_json:
        show(json.dumps(summary))
        return
    over, worst = summary["rows_after_end"], summary["error_worst"]
    show(
        f"{to}: {summary['tokens']} tokens of {summary['requests']} requests at {summary['sites']} sites, prompts sent as "
        f"{'chat messages' if chat else 'texts'}\n"
        + (f"  {over} of them after the end of their answer, while the batch was still running\n" if over else "")
        + f"  {summary['bytes_per_token']:.0f} bytes per token, {summary['ratio_source']:.2f} x smaller than computed, "
        f"{summary['ratio_fp32']:.2f} x smaller than fp32\n"
        + (
            f"  error of a row: mean {summary['error_mean']:.2g}, worst {worst:.2g}"
            if worst
            else "  every row is bit-exact (lossless)"
        )
    )
