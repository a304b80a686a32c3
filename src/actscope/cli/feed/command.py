"""actscope feed: the activation server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actscope.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actscope.cli.common.findings import Finding

_Text = str | None
_Number = int | None


def _option(text: str, metavar: str = "N") -> Any:
    return typer.Option(help=text, metavar=metavar, show_default=False)


def feed(
    config: Annotated[
        str, typer.Option(help="Preset: test, production, large-scale or env.", metavar="PRESET", show_default=False)
    ] = "",
    model: Annotated[_Text, _option("Hugging Face id, a local directory, or actscope/builtin.", "MODEL")] = None,
    engine: Annotated[_Text, _option("What runs it: hf (transformers) or vllm.", "NAME")] = None,
    dataset: Annotated[
        _Text, _option("builtin, a file, directory or glob, or a Hugging Face id[:config].", "DATA")
    ] = None,
    split: Annotated[_Text, _option("Split of the dataset.", "NAME")] = None,
    column: Annotated[_Text, _option("Column that has the text.", "NAME")] = None,
    texts: Annotated[_Text, _option("Read only the first so many texts.")] = None,
    sites: Annotated[
        _Text, _option("Where rows are read, e.g. middle, 12, first,middle,last, 8.mlp_out.", "SITES")
    ] = None,
    width: Annotated[_Number, _option("Width that rows must have; another one is refused.")] = None,
    dtype: Annotated[_Text, _option("Of the rows: float32, bfloat16 or float16.", "NAME")] = None,
    context: Annotated[_Text, _option("Longest piece of a text that is read at once, in tokens.")] = None,
    mask: Annotated[_Text, _option("Tokens without rows: special, bos or none.", "NAME")] = None,
    buffer_rows: Annotated[
        _Text,
        _option("Size of the buffer: rows (65536, 64k, 1M, 2e6), bytes (300GB) or a share of memory (75%).", "SIZE"),
    ] = None,
    windows: Annotated[_Number, _option("Parts of the buffer; rows are shuffled inside one.")] = None,
    serves: Annotated[_Number, _option("How often a row is served to a group.")] = None,
    seed: Annotated[_Number, _option("What the order derives from.")] = None,
    shuffle: Annotated[
        bool | None, typer.Option("--shuffle/--no-shuffle", help="Shuffle texts and rows.", show_default=False)
    ] = None,
    epochs: Annotated[_Number, _option("Passes over the dataset; 0 goes on for ever.")] = None,
    resume: Annotated[_Text, _option("Go on at this position, as it came with a batch.", "POSITION")] = None,
    state: Annotated[_Text, _option("Keep in this file how far the feed has come, and go on there.", "FILE")] = None,
    batch_tokens: Annotated[_Text, _option("Tokens that the model reads at once.")] = None,
    chunk_texts: Annotated[_Number, _option("Texts that are read together.")] = None,
    device: Annotated[_Text, _option("auto, cpu, cuda, cuda:1 …", "NAME")] = None,
    threads: Annotated[_Number, _option("CPU threads of the model; 0 leaves it to torch.")] = None,
    max_samples: Annotated[_Text, _option("Most rows of one request.")] = None,
    host: Annotated[_Text, _option("Address to listen on.", "ADDRESS")] = None,
    port: Annotated[_Number, _option("Port to listen on; 0 takes a free one.")] = None,
    token: Annotated[_Text, _option("Token that clients must present; better in ACTSCOPE_TOKEN.", "TOKEN")] = None,
    allow_host: Annotated[
        list[str] | None, _option("Accept this Host header too, e.g. my-box:6970; may be repeated.", "HOST")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, _option("Let pages of this origin call the API; may be repeated.", "ORIGIN")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Prove that it could start here, without a model; end.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="With --check: map the whole buffer for a moment.")] = False,
    presets: Annotated[bool, typer.Option("--presets", help="Print the presets and their memory; end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: of the check, the presets, or the start.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.", metavar="LEVEL")] = "info",
    log_file: Annotated[Path | None, typer.Option(help="Log to this file too.", metavar="FILE")] = None,
) -> None:
    """Serve fresh, shuffled activations of a model over a dataset to trainers, out of a buffer in shared memory.

    Without a preset: the built-in model and text, and a buffer of 1,048,576 rows. Every setting can also be given as
    ACTSCOPE_FEED_<SETTING>; flags go before the environment, and that before the preset. docs/feed.md has all of them.

    Example: actscope feed --config test
    """
    given = locals()
    named = {"allow_host": "allowed_hosts", "cors_origin": "cors_origins"}
    flags = {named.get(name, name): _given(given[name]) for name in given if name not in _OWN}
    if presets:
        _print_presets(flags, as_json)
    elif check:
        _check(config, flags, full, as_json)
    else:
        _serve(config, flags, as_json, log_level, log_file)


#: What is the command's own, and no setting of the feed.
_OWN = ("config", "check", "full", "presets", "as_json", "log_level", "log_file")


def _given(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _print_presets(flags: dict[str, Any], as_json: bool) -> None:
    from actscope.feed.planning.host_memory import this_machine
    from actscope.feed.planning.presets import as_text, overview

    machine = this_machine()
    lines = overview(machine, flags)
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        typer.echo(f"{as_text(lines)}\n\nmemory here: {machine.why}")


def _check(config: str, flags: dict[str, Any], full: bool, as_json: bool) -> None:
    findings = []
    for finding in _findings(config, flags, full):
        findings.append(finding)
        if not as_json:
            typer.echo(_line(finding))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _findings(config: str, flags: dict[str, Any], full: bool) -> Iterable[Finding]:
    from actscope.cli.common.findings import Finding
    from actscope.cli.feed.check import check
    from actscope.feed.planning.presets import feed_settings

    try:
        settings = feed_settings(config, flags)
    except SettingsError as error:
        return [Finding("settings", False, str(error))]
    return check(settings, whole=full)


def _line(finding: Finding) -> str:
    found = finding.found.replace("\n", "\n      ")
    remedy = f"\n      -> {finding.remedy}" if finding.remedy else ""
    return f"{'ok  ' if finding.ok else 'NO  '} {finding.what:<16} {found}{remedy}"


def _serve(config: str, flags: dict[str, Any], as_json: bool, log_level: str, log_file: Path | None) -> None:
    from actscope.cli.common.logs import log_to
    from actscope.cli.feed.running import run
    from actscope.feed.planning.host_memory import this_machine
    from actscope.feed.planning.memory_estimate import check_fits, estimate
    from actscope.feed.planning.presets import feed_settings

    handlers = log_to(log_level, log_file)
    settings = feed_settings(config, flags)
    check_fits(estimate(settings), this_machine())
    run(settings, as_json=as_json, handlers=handlers)
