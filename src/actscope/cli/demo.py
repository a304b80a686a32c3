"""actscope demo: the main job, on the built-in model or any other."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from actscope.cli.common import options
from actscope.cli.common.servers import engine_settings, gateway_in_background, running_engine, serve
from actscope.engines.builtin import NAME


def demo(
    model: Annotated[str, typer.Option(help="Hugging Face id, a local directory, or actscope/builtin.")] = NAME,
    once: Annotated[str, typer.Option(help="Ask this, print the answer with its scores, and exit.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print one JSON object.")] = False,
    max_tokens: Annotated[int, typer.Option(help="With --once: longest answer.")] = 200,
    temperature: Annotated[float, typer.Option(help="With --once: 0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="With --once: makes draws repeatable.")] = None,
    probes: options.Probes = None,
    train_probes: options.TrainProbes = True,
    port: options.Port = 6969,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
    record: options.Record = None,
    record_sites: options.RecordSites = "first,middle,last",
    record_codec: options.RecordCodec = "lossless",
    keep_recent: options.KeepRecent = "1GB",
    keep_minutes: options.KeepMinutes = 0.0,
    keep_on_disk: options.KeepOnDisk = None,
    trigger: options.Trigger = None,
    sample: options.Sample = 0.0,
    browser: options.Browser = True,
) -> None:
    """Talk to a model and watch its probes live, in the browser: built-in model, gateway and scope in one command.

    Example: actscope demo --once "Tell me about a fox in the snow" --json
    """
    recording = options.recording_settings(
        record, record_sites, record_codec, keep_recent, keep_minutes, keep_on_disk, trigger, sample
    )
    engine = engine_settings(
        model,
        probes,
        device=device,
        dtype=dtype,
        threads=threads,
        train_probes=train_probes,
        recording=recording,
    )
    if not once:
        gateway = options.gateway_settings("127.0.0.1", port, "", None, None, engine.card_id)
        serve(engine, gateway, browser=browser and options.can_show_a_browser())
        return
    quiet = options.gateway_settings("127.0.0.1", 0, "", None, None, engine.card_id)
    with running_engine(engine), gateway_in_background(quiet) as settings:
        from actscope.cli.common.completion import ask

        answer = ask(settings, model, once, max_tokens=max_tokens, temperature=temperature, seed=seed)
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
    else:
        _show(answer)


def _show(answer: dict[str, Any]) -> None:
    """The answer, and for each token its highest scores; what was never computed or is masked is said."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("position", "token", f"highest of {len(answer['probes'])} probes", box=None, header_style="bold")
    for token in answer["tokens"]:
        table.add_row(Text(str(token["position"]), justify="right"), Text(repr(token["text"])), Text(_highest(token)))
    console = Console()
    console.print(table)
    console.print(f"\n{answer['answer']}\n", style="bold", markup=False, highlight=False)
    console.print(
        f"{answer['computed']} of {answer['present']} positions computed; ended with {answer['finish_reason']}"
    )


def _highest(token: dict[str, Any], n: int = 3) -> str:
    scored = sorted(((v, name) for name, v in token["scores"].items() if v is not None), reverse=True)
    if not scored:
        words = {"n": "never computed", "m": "masked", "x": "not finite"}
        return ", ".join(sorted({words[state] for state in token["states"].values()}))
    return "   ".join(f"{name} {value:.3f}" for value, name in scored[:n])
