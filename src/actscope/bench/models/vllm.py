"""Examines one architecture with stock vLLM: rows that the plugin recorded under mixed load, against transformers."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from actscope.bench.models.architectures import Architecture, build
from actscope.bench.models.cases import SHAPE, CaseRun, run_plain
from actscope.bench.models.checks import PARTS, SUM, check_parts, check_site, off_by
from actscope.bench.models.configs import WIDE
from actscope.bench.models.examine import told
from actscope.bench.models.reference import Stream, calls_of, find_stream, tensor_in, watching
from actscope.bench.models.rows import RowStore, reason_for
from actscope.bench.models.verdicts import MatrixEntry, decide, described
from actscope.bench.models.vllm_configs import BFLOAT16, BFLOAT16_ROWS, CLASSES, OVERRIDES
from actscope.bench.models.vllm_engine import NEW, VllmRun, run


@dataclass(frozen=True, slots=True)
class Precision:
    """How close numbers are that count as equal.

    Attributes:
        dtype: Type of vLLM's weights and rows.
        rows: Deviation of a row, relative to its largest number.
        sums: Deviation of the sum of a block's parts, likewise.
        logits: Difference of logits for which the order of two tokens is not told apart, relative to their range.
    """

    dtype: str
    rows: float
    sums: float
    logits: float


#: Two implementations of one whole model in float32.
SINGLE = Precision("float32", 2e-3, SUM, 1e-2)
#: One block in bfloat16 and the same in float32, on the same input.
HALF = Precision("bfloat16", BFLOAT16_ROWS, 1e-2, 3e-2)


def examine_vllm(architecture: Architecture, selection: str) -> MatrixEntry:
    """Return the result of one architecture with vLLM, with these sites recorded. Call it in a process of its own."""
    begun = time.perf_counter()
    entry = MatrixEntry(architecture.name, architecture.kind, "vllm")
    precision = HALF if architecture.name in BFLOAT16 else SINGLE
    try:
        model = build(architecture, scale=WIDE, table=OVERRIDES)
        if precision is HALF:
            model.bfloat16().float()  # the same weights in both
        with calls_of(model) as calls:
            run_plain(model)
    except Exception as error:  # a class of transformers may fail in any way
        entry.reason = told("transformers: not built, or does not run", error)
        return entry
    entry.model_class = type(model).__name__
    stream = find_stream(model, calls, SHAPE)
    if stream is None:
        entry.reason = "no reference was found: no list of modules of transformers' model is a chain"
        return entry
    with tempfile.TemporaryDirectory(prefix="mx-") as directory:
        path = Path(directory) / "model"
        try:
            _save(model, path, CLASSES.get(architecture.name))
            ran = run(path, selection, Path(directory), precision.dtype)
            alone = run(path, "", Path(directory), precision.dtype).texts if precision is HALF else ran.texts
        except Exception as error:  # vLLM may fail in any way
            entry.reason = told("vLLM cannot run it", error)
        else:
            check_run(entry, model, stream, ran, precision, alone)
    entry.seconds = round(time.perf_counter() - begun, 2)
    return entry


def _save(model: nn.Module, path: Path, class_name: str | None) -> None:
    """Save the model, under another name of its class if there is one."""
    model.save_pretrained(path)  # type: ignore[operator]
    if class_name is not None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"architectures": [class_name]}))


def check_run(
    entry: MatrixEntry,
    model: nn.Module,
    stream: Stream,
    ran: VllmRun,
    precision: Precision,
    alone: dict[str, tuple[int, ...]],
) -> None:
    """Set the entry's points, cases and verdict. `alone` has vLLM's texts without the plugin."""
    said = "; ".join(ran.said)
    if not ran.rows.of:
        entry.verdict, entry.reason = (
            ("refused", said) if said else ("wrong", "no rows were recorded, and nothing says so")
        )
        return
    values, near = _reference(model, stream, ran, precision)
    names = tuple(ran.texts)[:-1]  # the last one has rows from the prefix cache
    rows = RowStore()
    rows.of.update({name: ran.rows.of[name] for name in names})
    fed = CaseRun(tuple(ran.texts[name][:-1] for name in names), (0,) * len(names), None, names)
    sites = sorted({site for name in names for site in ran.rows.of[name]})
    blocks = [f"layers.{layer}.{point}" for layer in range(len(stream.blocks)) for point in ("resid_pre", "resid_post")]
    offered = dict.fromkeys([*sites, "embed", *blocks, "final_norm"])
    findings = []
    for site in offered:
        if site.endswith(PARTS):
            continue
        reference = [values[name][site] for name in names] if all(site in values[name] for name in names) else None
        why = reason_for(site, ran.said) or ("" if site in sites else "it is not recorded with this selection of sites")
        findings.append(check_site(rows, site, fed, reference, why, precision.rows))
    findings += check_parts(rows, fed, len(stream.blocks), set(sites), _states(model, stream, fed), precision.sums)
    entry.add_points(findings)
    wrong = [f"wrong: {one.site}: {described(one)}" for one in findings if one.status == "wrong"]
    entry.cases["mixed load"] = wrong[0] if wrong else "right"
    entry.cases["prefix cache"] = _after_cache(ran, tuple(ran.texts)[-1], values, precision)
    entry.cases["text"] = "right" if near else "cannot: vLLM's greedy tokens are not those of transformers"
    if alone != ran.texts:
        entry.cases["text"] = "wrong: the generated text is another with the plugin"
    if entry.cases["mixed load"] != "right" and _is_another_model(model, stream, rows, values):
        entry.reason = (
            "vLLM itself computes another model than transformers: its final norm makes the recorded final_norm of the recorded "
            "stream, and both differ"
        )
        return
    if not near and entry.cases["mixed load"] != "right":
        entry.reason = "vLLM itself computes another model than transformers: its greedy text differs"
        return
    decide(entry)


def _is_another_model(model: nn.Module, stream: Stream, rows: RowStore, values: dict[str, dict[str, Tensor]]) -> bool:
    """Return whether the recorded stream agrees with vLLM's own final norm, whose rows differ from the reference.

    The output of the final norm is that of a module, which cannot be read in a wrong way.
    """
    end = f"layers.{len(stream.blocks) - 1}.resid_post"
    if not stream.norm:
        return False
    norm = model.get_submodule(stream.norm)
    differs = False
    for name, reference in values.items():
        own = rows.of.get(name, {})
        if name not in rows.of or end not in own or "final_norm" not in own or "final_norm" not in reference:
            continue
        positions = sorted(own[end])
        taken, given = (
            torch.stack([own[site][position].values for position in positions]) for site in (end, "final_norm")
        )
        with torch.no_grad():
            made = norm(taken)
        if off_by(made, given) > SINGLE.rows:
            return False
        differs |= off_by(given, reference["final_norm"][positions]) > SINGLE.rows
    return differs


def _reference(
    model: nn.Module, stream: Stream, ran: VllmRun, precision: Precision
) -> tuple[dict[str, dict[str, Tensor]], bool]:
    """Return transformers' values by request and site, [positions, d], and whether vLLM's tokens are greedy for it.

    In float32 they are those of the whole model. In bfloat16, each block is given the rows that vLLM recorded before it: what
    rounding does to one block is small, what it does to a model is not.
    """
    values: dict[str, dict[str, Tensor]] = {}
    greedy = True
    for name, text in ran.texts.items():
        ids = torch.tensor([text[:-1]])
        given = _recorded(stream, ran, name) if precision is HALF else {}
        with watching(model, stream) as watched, _fed(model, stream, given), torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
            values[name] = {site: value[0] for site, value in watched.passes[-1].items()}
            if stream.norm and (end := given.get(len(stream.blocks))) is not None:
                values[name]["final_norm"] = model.get_submodule(stream.norm)(end).reshape(end.shape)
        chosen = logits[torch.arange(len(text) - 1 - NEW, len(text) - 1), torch.tensor(text[-NEW:])]
        scores = logits[-NEW:]
        near = precision.logits * (scores.max() - scores.min())
        greedy &= bool(((scores.max(1).values - chosen) <= near).all())
    return values, greedy


def _recorded(stream: Stream, ran: VllmRun, name: str) -> dict[int, Tensor]:
    """Return the rows [positions, d] that vLLM recorded before each block, and last those behind the last one, if complete.

    Rows of the last request that came from the prefix cache are those of the request before, whose prompt it repeats.
    """
    twins = list(ran.texts)[-2:]
    found = {}
    for block in range(len(stream.blocks) + 1):
        for site in (f"layers.{block}.resid_pre", f"layers.{block - 1}.resid_post"):
            before = ran.rows.of[twins[0]].get(site, {}) if name == twins[1] else {}
            rows = {**before, **ran.rows.of[name].get(site, {})}
            if len(rows) == len(ran.texts[name]) - 1:
                found[block] = torch.stack([row.values.float() for _, row in sorted(rows.items())])
                break
    return found


@contextmanager
def _fed(model: nn.Module, stream: Stream, given: dict[int, Tensor]) -> Iterator[None]:
    """Replace the input of these blocks, and of the final norm, in the body."""
    paths = {block: path for block, path in enumerate((*stream.blocks, "" if stream.inner else stream.norm)) if path}

    def hook_for(rows: Tensor) -> Callable[..., tuple[tuple[object, ...], dict[str, object]]]:
        turned = rows[:, None] if stream.time_first else rows[None]

        def hook(
            module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
        ) -> tuple[tuple[object, ...], dict[str, object]]:
            if args:
                return (turned, *args[1:]), kwargs
            name = next(name for name, value in kwargs.items() if tensor_in(value) is not None)
            return args, {**kwargs, name: turned}

        return hook

    handles = [
        model.get_submodule(paths[block]).register_forward_pre_hook(hook_for(rows), with_kwargs=True)
        for block, rows in given.items()
        if block in paths
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _states(model: nn.Module, stream: Stream, fed: CaseRun) -> list[list[Tensor]]:
    """Return, for each block, what its modules took in all texts one after the other, [positions, d]."""
    taken: list[dict[int, list[Tensor]]] = [{} for _ in stream.blocks]
    for tokens in fed.tokens:
        with calls_of(model) as calls, torch.no_grad():
            model(input_ids=torch.tensor([tokens]), use_cache=False)
        for layer, path in enumerate(stream.blocks):
            own = [call.taken[0] for call in calls if f"{call.path}.".startswith(f"{path}.") and call.taken]
            for number, value in enumerate(own):
                taken[layer].setdefault(number, []).append(value.reshape(-1, value.shape[-1]))
    return [
        [torch.cat(parts) for parts in one.values() if len({part.shape[1] for part in parts}) == 1] for one in taken
    ]


def _after_cache(ran: VllmRun, name: str, values: dict[str, dict[str, Tensor]], precision: Precision) -> str:
    """Check the rows of the request whose prompt was in the prefix cache: those that were computed, up to the end."""
    for site, reference in values[name].items():
        lane = ran.rows.of[name].get(site, {})
        if not lane:
            continue
        positions = sorted(lane)
        last = len(ran.texts[name]) - 2
        if positions != list(range(positions[0], last + 1)):
            return f"wrong: {site}: positions {positions} do not run to {last}"
        if any(lane[position].token != ran.texts[name][position] for position in positions):
            return f"wrong: {site}: token ids differ"
        off = off_by(torch.stack([lane[position].values for position in positions]), reference[positions])
        if off > precision.rows:
            return f"wrong: {site}: values differ (by {off:.2g} of the largest number)"
    return "right"
