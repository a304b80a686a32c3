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
)
from actscope.cli.doctor import command as doctor
from actscope.cli.feed import command as feed

app = typer.Typer(
    name="actscope",
    help="The oscilloscope for language models: see which directions light up on which token, while the model runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"actscope {__version__}")
        raise typer.Exit


app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("gateway")(gateway.gateway)
app.command("watch")(watch.watch)
app.add_typer(probe.app, name="probe")
app.command("capture")(capture.capture)
app.command("mark")(mark.mark)
app.command("info")(info.info)
app.command("verify")(verify.verify)
app.command("recover")(recover.recover)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.command("replay")(replay.replay)
app.command("analyze")(analyze.analyze)
app.command("harvest")(harvest.harvest)
app.command("feed")(feed.feed)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
