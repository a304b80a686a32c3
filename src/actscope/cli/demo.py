"""actscope demo: model, gateway and page in one command, on the built-in model or any other."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from actscope.cli.common import options
from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import show
from actscope.cli.common.settings_options import Given, with_settings
from actscope.engines.builtin import NAME
from actscope.runtime.printable import printable


@with_settings
def demo(
    engine_flags: Annotated[Given, options.ENGINE],
    gateway_flags: Annotated[Given, options.GATEWAY.only("port")],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="Hugging Face id, directory, GGUF file, actscope/smollm2 or actscope/builtin."
        ),
    ] = NAME,
    once: Annotated[
        str, typer.Option(metavar="TEXT", help="Ask this question, print the answer with its scores, and exit.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print one JSON object.")] = False,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --once: maximum length of the answer, in tokens.")
    ] = 200,
    temperature: Annotated[
        float, typer.Option(metavar="N", help="With --once: sampling temperature. 0 is greedy.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="With --once: seed of the sampling, which makes answers repeatable.")
    ] = None,
    browser: options.Browser = True,
) -> None:
    """Talk to a model and watch its probes live in the browser: the built-in model, the gateway and the page in one command.

    Example: actscope demo --once "Tell me about a fox in the snow" --json
    """
    from actscope.cli.common.packages import require_engine

    require_engine(model)
    from actscope.cli.common.servers import engine_settings, gateway_in_background, running_engine, serve

    engine = engine_settings(model, engine_flags)
    if not once:
        gateway = options.GATEWAY.make(gateway_flags, upstream=engine.card_id)
        serve(engine, gateway, browser=browser and options.can_show_a_browser())
        return
    quiet = options.GATEWAY.make({}, port=0, upstream=engine.card_id)
    stopped = "interrupted: the answer was not complete; repeat the command to ask again"
    with resumable(stopped), running_engine(engine), gateway_in_background(quiet) as settings:
        from actscope.cli.common.completion import ask

        answer = ask(settings, model, once, max_tokens=max_tokens, temperature=temperature, seed=seed)
    if as_json:
        show(json.dumps(answer, ensure_ascii=False))
    else:
        _show(answer)


def _show(answer: dict[str, Any]) -> None:
    """Print the answer and a table of its tokens: the highest scores of each, or the states if it has none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("position", "token", f"highest of {len(answer['probes'])} probes", box=None, header_style="bold")
    for token in answer["tokens"]:
        table.add_row(Text(str(token["position"]), justify="right"), Text(repr(token["text"])), Text(_highest(token)))
    console = Console()
    console.print(table)
    console.print(printable(f"\n{answer['answer']}\n"), style="bold", markup=False, highlight=False)
    console.print(
        f"{answer['computed']} of {answer['present']} positions computed; ended with {answer['finish_reason']}"
    )


def _highest(token: dict[str, Any], n: int = 3) -> str:
    scored = sorted(((v, name) for name, v in token["scores"].items() if v is not None), reverse=True)
    if not scored:
        words = {"n": "never computed", "m": "masked", "x": "not finite"}
        return ", ".join(sorted({words[state] for state in token["states"].values()}))
    return "   ".join(f"{name} {value:.3f}" for value, name in scored[:n])
