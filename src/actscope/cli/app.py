"""The application: registers all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from actscope._version import __version__
from actscope.cli import (
    analyze,
    bench,
    capture,
    demo,
    export,
    gateway,
    harvest,
    import_,
    info,
    mark,
    probe,
    recover,
    replay,
    serve,
    verify,
    watch,
    why,
)
from actscope.cli.common.hints import add_hints
from actscope.cli.common.output import show
from actscope.cli.doctor import command as doctor
from actscope.cli.feed import command as feed
from actscope.cli.metrics import command as metrics

app = typer.Typer(
    name="actscope",
    help="The oscilloscope for language models: see which directions light up on which token, while the model runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(wanted: bool) -> None:
    """Print the version and exit. A callback of the option, because options without a command reach no function."""
    if wanted:
        show(f"actscope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


# The first sentence of a command's docstring is mostly too long for the list of commands.
app.command("demo", short_help="Talk to a model and watch its probes live in the browser.")(demo.demo)
app.command("serve", short_help="Serve a transformers model with live probes.")(serve.serve)
app.command("gateway", short_help="Put the gateway and the scope page in front of an engine.")(gateway.gateway)
app.command("watch", short_help="Follow a running engine in the terminal.")(watch.watch)
app.add_typer(probe.app, name="probe")
app.command("capture", short_help="Run prompts through a model and record its activations.")(capture.capture)
app.command("mark", short_help="Keep a request of a server that runs with --record.")(mark.mark)
app.command("why", short_help="Say why a token came when it came.")(why.why)
app.command("info", short_help="Summarize a recording.")(info.info)
app.command("verify", short_help="Check every byte of a recording.")(verify.verify)
app.command("recover", short_help="Close a recording after a crash.")(recover.recover)
app.command("export", short_help="Export a recording to a format that other tools read.")(export.export)
app.command("import", short_help="Create a recording from a packet stream.")(import_.import_)
app.command("replay", short_help="Play a recording on the scope page as if it ran live.")(replay.replay)
app.command("analyze", short_help="Measure the rows of a recording, and plot them.")(analyze.analyze)
app.command("harvest", short_help="Run a dataset through a model and keep the rows as shards.")(harvest.harvest)
app.command("feed", short_help="Serve fresh, shuffled activations to trainers.")(feed.feed)
app.add_typer(metrics.app, name="metrics")
app.command("bench", short_help="Measure a part of actscope against a named baseline.")(bench.bench)
app.command("doctor", short_help="Check what works on this machine.")(doctor.doctor)
add_hints(app)
