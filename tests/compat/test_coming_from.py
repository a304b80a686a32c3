"""docs/coming-from.md: every line in its middle columns works as written, in the order of its table."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import pytest
import torch
import typer
from support.feed.feeding import TOKEN, feeding
from support.hf.tiny import tiny
from support.servers import serving

import actscope
from actscope.cli.app import app
from actscope.engines.builtin import NAME
from actscope.engines.vllm.settings import read_settings
from actscope.feed.planning.presets import feed_settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming-from.md").read_text()
#: What a middle cell may say instead of a line.
NO_LINE = {"the same command", "leave it out", "not here", "any number of tokens"}
#: Recording times and folders differ from start to start.
FRESH = "/new/run.acts"
SECRET = {"ACTSCOPE_TOKEN": TOKEN}


@dataclass(frozen=True)
class Line:
    """One row of a table: what users of the tool type, and the code of the middle cell."""

    theirs: str
    here: str
    codes: tuple[str, ...]

    @property
    def kind(self) -> str:
        if not self.codes:
            return "words"
        first = self.codes[0]
        if self.here.startswith("log: "):
            return "log"
        return "command" if first.startswith("actscope ") else "variable" if re.match(r"[A-Z_]+=", first) else "python"


def lines() -> dict[str, list[Line]]:
    """The rows of the tables, by the title of their section. As on GitHub, only `\\|` is a pipe inside a cell, also in code."""
    found: dict[str, list[Line]] = {}
    title = ""
    for text in PAGE.splitlines():
        if text.startswith("## "):
            title = text[3:]
        elif text.startswith("| ") and not text.startswith("| theirs"):
            theirs, here, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", text.strip())[1:-1])
            found.setdefault(title, []).append(Line(theirs, here, tuple(re.findall(r"`([^`]*)`", here))))
    return found


LINES = lines()
ALL = [line for section in LINES.values() for line in section]


def named(kind: str) -> list[Any]:
    return [pytest.param(line, id=f"{line.theirs} {line.codes[0]}"[:70]) for line in ALL if line.kind == kind]


def test_every_row_has_a_line_or_says_in_words_that_there_is_none() -> None:
    assert len(LINES) == 9 and all(len(section) > 1 for section in LINES.values())
    assert [line for line in ALL if line.kind == "words" and line.here not in NO_LINE] == []
    assert all(len(re.findall(r"(?<!\\)`", text)) % 2 == 0 for text in PAGE.splitlines())


@pytest.mark.parametrize("line", named("command"))
def test_a_command_is_one_of_ours_with_flags_that_it_has(line: Line) -> None:
    """Parsed, not run: the commands have tests of their own."""
    for code in line.codes:
        command: Any = typer.main.get_command(app)
        words = shlex.split(code)[1:]
        context = click.Context(command)
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0))
            assert found is not None, code
            command = found
        command.make_context(command.name, words)


@pytest.mark.parametrize("line", named("log"))
def test_a_line_of_the_log_is_one_that_is_logged(line: Line) -> None:
    source = "".join(path.read_text() for path in (ROOT / "src/actscope/engines/vllm").rglob("*.py"))
    assert line.codes[0] in source


def variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"([A-Z_]+)=([^\s`]+)", text))


def vllm_settings(env: dict[str, str]) -> dict[str, Any]:
    settings = read_settings({}, env)
    found = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return found | {"record": FRESH if found["record"] else ""}


def of_the_feed(line: Line) -> bool:
    return "ACTSCOPE_FEED_" in line.here


@pytest.mark.parametrize("line", [one for one in named("variable") if not of_the_feed(one.values[0])])
def test_a_variable_of_theirs_does_what_ours_does(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same value both give the same settings; ours alone, where theirs is no variable, is one that we have."""
    monkeypatch.chdir(tmp_path)
    Path("src/probes/My-Model").mkdir(parents=True)
    changed = vllm_settings(variables(line.here))
    assert changed != vllm_settings({})
    if theirs := variables(line.theirs):
        assert changed == vllm_settings(theirs)


@pytest.mark.parametrize("line", [one for one in named("variable") if of_the_feed(one.values[0])])
def test_a_variable_of_the_activation_server_does_what_ours_does(line: Line) -> None:
    ours, theirs, none = (variables(line.here), variables(line.theirs), dict[str, str]())
    changed, same, plain = (feed_settings("env", env=env | SECRET) for env in (ours, theirs, none))
    assert changed == same != plain


# --- Python ---


def run(section: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute the Python lines of a section, one after the other, on the same names."""
    for line in LINES[section]:
        if line.kind == "python":
            try:
                exec(compile(line.codes[0], f"docs/coming-from.md: {line.theirs}", "exec"), names)
            except Exception as error:
                error.add_note(f"the line for {line.theirs!r}")
                raise
            names.setdefault("after", {})[line.theirs] = {k: v for k, v in names.items() if k != "after"}
    return names


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page takes for granted, in an empty directory with a recording."""
    monkeypatch.chdir(tmp_path)
    model: Any = tiny("llama").model
    ids = torch.arange(3, 11)[None]
    with actscope.capture(model, to="run.acts") as cap, cap.request("first"):
        hidden = model.model(ids, output_hidden_states=True).hidden_states
    rows = actscope.open("run.acts").rows("layers.3.resid_post")
    known = {"actscope": actscope, "httpx": httpx, "json": json, "np": np, "Path": Path, "model": model, "ids": ids}
    return known | {"rows": rows, "hidden": [one[0].detach().numpy() for one in hidden]}


def test_live_probes(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against `actscope serve`: page, stream with scores, events by the names that the proxy used, all data, the ring."""
    with serving() as running:
        monkeypatch.setenv("ACTSCOPE_RUNTIME_DIR", str(running.directory))
        place = running.place
        auth = {"Authorization": f"Bearer {place.token}"}
        body = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        request = httpx.post(f"{place.url}/v1/chat/completions", json=body, headers=auth).json()["id"]
        given = {"url": place.url, "auth": auth, "name": NAME, "messages": body["messages"], "request": request}
        done = run("Live probes over CUDA IPC", names | given)
        done["ring"].close()
    assert "<html" in done["page"] and '"scores"' in done["answer"] and done["answer"].rstrip().endswith("[DONE]")
    for event in ("token", "probe_update", "probe_final", "done"):
        assert f"event: {event}" in done["events"]
    assert done["data"]["state"] == "done"


def test_capture_fork(names: dict[str, Any]) -> None:
    assert len(run("Capture fork of vLLM", names)["rows"]) == 8


def test_instrumentation_framework(names: dict[str, Any]) -> None:
    done = run("Instrumentation framework", names)
    assert done["analysis"]["per_layer"].keys() == {f"layers.{i}.resid_post" for i in range(4)}
    assert done["tokens"]["total_tokens"] == 1 and done["per_token"] > 0 and len(done["labels"]) == 8
    assert done["config"].capture_config() == actscope.CaptureConfig.preset("balanced") and done["arch"] == "llama"
    assert done["packets"] == [("model.layers.0", done["rows"].values.tobytes())] and done["n"] == 1


def test_activation_server(names: dict[str, Any]) -> None:
    """Against a running feed."""
    with feeding() as running:
        auth = {"Authorization": f"Bearer {TOKEN}"}
        done = run("Activation server", names | {"url": running.url, "auth": auth, "token": TOKEN})
        done["client"].close()
    assert done["ready"] and done["tensor"].shape == (10, 256) and done["metadata"]["dtype"] == "torch.float32"
    assert done["valid"] > 0 and done["status"] == "serving" and len(done["keys"][0]) == 5
    assert (done["shape"], done["dtype"]) == ("5,256", "torch.float32") and done["dropped"] >= 0


def test_nnsight(names: dict[str, Any]) -> None:
    done = run("nnsight", names)
    assert (actscope.open("nn.acts")["layers.1.resid_post"][:] == done["hidden"][2]).all() and len(done["rows"]) == 8
    assert len(actscope.open("steps.acts").labels()) == 8 + 2
    assert actscope.open("two.acts").requests == ["a", "b"]


def test_transformer_lens(names: dict[str, Any]) -> None:
    done = run("TransformerLens", names)
    assert done["stack"].shape == (4, 8, 64) and (done["stack"][1] == done["hidden"][2]).all()
    assert actscope.open("few.acts").sites == ("layers.1.resid_post", "layers.3.mlp_out")


@pytest.mark.parametrize(
    ("package", "module", "name", "attributes"),
    [
        ("transformer_lens", "transformer_lens", "HookedTransformer", ("run_with_cache", "run_with_hooks", "add_hook")),
        ("transformer_lens", "transformer_lens", "ActivationCache", ("accumulated_resid",)),
        ("sae_lens", "sae_lens", "ActivationsStore", ("from_sae", "state_dict", "save", "__next__")),
        ("sae_lens", "sae_lens", "CacheActivationsRunner", ("run",)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_peers_names_are_its_own(package: str, module: str, name: str, attributes: tuple[str, ...]) -> None:
    """Where the peer is installed, the page speaks of what it has."""
    pytest.importorskip(package)
    found = getattr(importlib.import_module(module), name)
    assert [attribute for attribute in attributes if not hasattr(found, attribute)] == []


@pytest.fixture
def feed_names(names: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with feeding() as running:
        yield names | {"url": running.url, "token": TOKEN}


def test_saelens(feed_names: dict[str, Any]) -> None:
    done = run("SAELens's activations store", feed_names)
    done["store"].close()
    assert done["batch"].shape == (256, 256)
    assert float(done["scaled"].norm(dim=1).mean()) == pytest.approx(16, rel=0.3)


def test_vllms_hidden_states(names: dict[str, Any]) -> None:
    done = run("vLLM's hidden states", names)
    assert len(done["rows"]) == 8 and done["token_ids"].tolist() == list(range(3, 11))
