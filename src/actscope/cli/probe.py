"""actscope probe: list, import, train and test probes, and change those of a running engine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from actscope.cli.common import options
from actscope.cli.common.engines import ask, engine_replicas, refusal
from actscope.cli.common.interrupts import resumable
from actscope.cli.common.output import legible, show
from actscope.cli.common.packages import require_model
from actscope.cli.common.settings_options import Given, with_settings
from actscope.errors import ProbeError, SettingsError, UpstreamError
from actscope.runtime.printable import one_line
from actscope.runtime.writable import check_can_create

if TYPE_CHECKING:
    import httpx

    from actscope.engines.hf.probe_training import Trained
    from actscope.probes.labels import LabelledText
    from actscope.ring.discovery import EngineCard

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, import, train, test, add and remove probes.")


@app.command("list")
def list_probes(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Directory of probe files. By default those of a running engine."),
    ] = None,
    engine: options.Engine = "",
    as_json: options.Json = False,
) -> None:
    """List the probes of a directory, or of a running engine. Exits 1 if a file of the directory is no valid probe.

    Example: actscope probe list probes/my-model
    """
    from actscope.probes import load_probes

    bad: list[ProbeError] = []
    if directory is not None:
        if not directory.is_dir():
            raise ProbeError(f"{directory}: not a directory")
        probes = [msgspec.structs.asdict(probe.info) for probe in load_probes(directory, bad.append)]
    else:
        probes = _list_engine(engine)
    show(json.dumps(probes, indent=2) if as_json else _table(legible(probes)))
    for error in bad:
        show(one_line(f"actscope: {error}"), err=True)
    if bad:
        raise typer.Exit(1)


@app.command()
def test(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Probe files, or directories of them.")],
) -> None:
    """Check probe files: their format, and that their test vectors have the scores that they state.

    Example: actscope probe test probes/my-model/*.safetensors
    """
    from actscope.probes import find_probes, load_probe

    empty = [path for path in files if path.is_dir() and not any(find_probes(path))]
    if empty:
        raise ProbeError(f"{empty[0]}: no probe files (*.safetensors, *.json) in it")
    for path in [one for named in files for one in (find_probes(named) if named.is_dir() else [named])]:
        probe = load_probe(path)
        info = probe.info
        stored = "" if probe.stored == "F32" else f", stored as {probe.stored}, used as float32"
        show(f"{path}: ok, {info.id} at {info.site}, d {probe.d}, {len(probe.test_scores)} test vectors{stored}")


@app.command("import")
def import_probe(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Control vector (.gguf), scikit-learn model (.skops), or probe (.json)."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write the probes to.")] = Path("probes"),
    site: Annotated[
        str,
        typer.Option(metavar="SITE", help="Site whose rows a .skops model was fitted on, e.g. layers.12.resid_post."),
    ] = "",
    name: Annotated[
        str,
        typer.Option(metavar="NAME", help="Id of the probe, or beginning of several ids. By default the file's name."),
    ] = "",
    layers: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of the model's layers, for a control vector of only some of them.", min=0
        ),
    ] = 0,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Model that the probes are for. By default any.")] = "",
    as_json: options.Json = False,
) -> None:
    """Make probes of another tool's file. Nothing is unpickled.

    Each direction of a control vector (of repeng, or of llama.cpp) becomes a probe, with its scale and sign. A linear model of
    scikit-learn, with its scaler, becomes one probe, or one for each class, whose scores are the library's own.

    Example: actscope probe import happy.gguf --out probes/my-model
    """
    from actscope.probes import import_probes
    from actscope.probes.format import save_probes

    check_can_create(out, "--out", SettingsError)
    found = import_probes(file, site=site or None, name=name, n_layers=layers or None, model=model or None)
    save_probes(found, out)
    probes = [msgspec.structs.asdict(probe.info) for probe in found]
    show(json.dumps(probes, indent=2) if as_json else _table(legible(probes)))
    show(f"{len(found)} probes written to {out}", err=True)
    if file.suffix == ".gguf" and not layers and found[-1].info.site == "final_norm":
        show(
            f"{found[-1].id}: taken as the last block's direction, which is of the rows behind the final norm; if the model has "
            "more layers, say how many: --layers",
            err=True,
        )


@app.command()
def add(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES", help="Probe files. A probe with the same id is replaced.")
    ],
    engine: options.Engine = "",
) -> None:
    """Add probes to a running engine, or replace them, from its next step on.

    Example: actscope probe add probes/my-model/enc_19_refusal.json
    """
    from actscope.probes import load_probe

    for probe in [load_probe(path) for path in files]:
        body = {**msgspec.structs.asdict(probe.info), "vector": probe.weight.tolist()}
        added = _change_engine("PUT", probe.id, engine, body)
        show(f"{added['id']}: column {added['slot']}, at {added['site']}")


@app.command()
def remove(
    ids: Annotated[list[str], typer.Argument(metavar="IDS", help="Ids of probes.")], engine: options.Engine = ""
) -> None:
    """Remove probes from a running engine.

    Example: actscope probe remove danger joy
    """
    for probe_id in ids:
        _change_engine("DELETE", probe_id, engine)
        show(f"{probe_id}: removed")


@app.command()
@with_settings
def train(
    flags: Annotated[Given, options.ENGINE.only("device", "dtype", "trust_remote_code")],
    data: Annotated[
        Path | None, typer.Argument(metavar="DATA", help="Labelled text as JSON lines. By default the built-in text.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="Hugging Face id, directory, GGUF file, actscope/smollm2 or actscope/builtin."
        ),
    ] = "actscope/builtin",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write the probes to.")] = Path("probes"),
    label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Label to train. Repeatable. By default all.")
    ] = None,
    sites: Annotated[
        str, typer.Option(metavar="SITES", help="Candidate sites, e.g. all, 3,7 or first,middle,last.")
    ] = "all",
    texts: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of texts. Lines of DATA after these are not read.")
    ] = 2000,
    min_auroc: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="N", help="Minimum AUROC on held-out text. Probes below are not written."),
    ] = 0.95,
    as_json: options.Json = False,
) -> None:
    """Train a probe for each label of labelled text, and print how well it separates held-out text.

    A line of the data is {"text": "...", "spans": {"danger": [[4, 20]]}} or {"text": "...", "label": {"joy": true}}. Each
    label is trained at every candidate site, and the earliest of the best sites is kept. The control is the same training on
    shuffled labels: an AUROC of about 0.5, or the data leaks. A probe that could never fire (recall 0) is not written. The reason
    of each label without a probe is printed.

    Example: actscope probe train my-labels.jsonl --model Qwen/Qwen2-0.5B --out probes/Qwen/Qwen2-0.5B
    """
    require_model(model, "sklearn")
    from actscope.cli.common.progress import ProgressBar, load_with_spinner
    from actscope.engines.hf.probe_training import builtin_texts, train_probes
    from actscope.sites import select

    warnings.filterwarnings(
        "ignore", "(?s).*joblib will operate in serial mode"
    )  # no shared memory: it need not be parallel
    check_can_create(out, "--out", SettingsError)
    chosen = _labelled_texts(data, texts, label or []) if data else None
    reasons: dict[str, str] = {}
    with resumable(f"interrupted: no probe has been written to {out}; repeat the command to start over"):
        loaded = load_with_spinner(model, flags)
        with ProgressBar() as progress:
            results = train_probes(
                loaded,
                builtin_texts(loaded, texts) if chosen is None else chosen,
                select(sites, loaded.n_layers),
                label or None,
                progress=progress.update,
                skipped=reasons.__setitem__,
                left_out=_tell_left_out if data else lambda used, given: None,
            )
        found = {result.probe.id: result.why_not(min_auroc) for result in results}
        kept = [result for result in results if not found[result.probe.id]]
        if kept:
            _save(kept, out)
    rows = [
        {
            **msgspec.structs.asdict(r.probe.info),
            "positives": r.fit.positives,
            "recall": r.fit.recall,
            "kept": r in kept,
            "reason": found[r.probe.id] or None,
        }
        for r in results
    ]
    reasons |= {label: reason for label, reason in found.items() if reason}
    if as_json:
        measured = {row["id"] for row in rows}
        skipped = [{"id": i, "kept": False, "reason": why} for i, why in reasons.items() if i not in measured]
        show(json.dumps([*rows, *skipped], indent=2))
    elif rows:
        show(_training_table(rows))
    for name, reason in reasons.items():
        show(f"not written: {name}: {reason}", err=True)
    if not kept:
        raise ProbeError("no probe was written; see the reason of each label above")
    show(f"{len(kept)} probes written to {out}", err=True)


def _tell_left_out(used: int, given: int) -> None:
    said = f"only the first {used} of {given} texts are used, to bound the memory of their rows: name fewer --sites"
    show(said, err=True)


def _save(kept: Sequence[Trained], out: Path) -> None:
    from actscope.probes.format import save_probes

    probes = [result.probe for result in kept]
    try:
        save_probes(probes, out)
    except OSError as error:
        raise ProbeError(
            f"--out {out}: the {len(probes)} probes cannot be written ({error.strerror or error}), and none of them is there: "
            "make room, or choose another place, and repeat the command"
        ) from error


def _labelled_texts(data: Path, most: int, wanted: list[str]) -> list[LabelledText]:
    """Read a label file and check that it can give probes, before a model is loaded. Raises ProbeError if it cannot."""
    from actscope.probes.label_check import trainable_labels
    from actscope.probes.labels import load_labelled

    found = load_labelled(data, most)
    if found.repeated:
        show(f"{data}: {found.repeated} lines repeat an earlier text; each text is taken once", err=True)
    try:
        trainable_labels(found.texts, wanted)
    except ProbeError as error:
        raise ProbeError("\n".join(f"{data}: {line}" for line in str(error).splitlines())) from error
    return found.texts


def _list_engine(engine: str) -> list[dict[str, Any]]:
    """Return the probes of all parts of an engine. The data-parallel engines of a server have the same ones."""
    answers = [ask(card, "GET", "/v1/actscope/probes") for card in engine_replicas(engine)[0]]
    return [probe for answer in answers for probe in _checked(answer).json()["probes"]]


def _change_engine(method: str, probe_id: str, engine: str, body: dict[str, Any] | None = None) -> Any:
    """Change a probe in every engine of a server, and return the first answer.

    Raises:
        UpstreamError: No engine is running.
        ProbeError: An engine refused the change or does not answer. Says which engines have done it.
    """
    path, done, failed = f"/v1/actscope/probes/{probe_id}", list[Any](), list[Exception]()
    for cards in engine_replicas(engine):
        try:
            done.append(_change_one(cards, method, path, body))
        except (ProbeError, UpstreamError) as error:
            failed.append(error)
    if not failed:
        return done[0]
    if not done:
        raise failed[0]
    n = len(done) + len(failed)
    raise ProbeError(f"done in {len(done)} of {n} engines, repeat it for the others: {'; '.join(map(str, failed))}")


def _change_one(cards: list[EngineCard], method: str, path: str, body: dict[str, Any] | None) -> Any:
    """Send a change to the parts of an engine in order, until one has the site (PUT) or the probe (DELETE).

    A probe that was put is then removed from the other parts, since its site may have moved.

    Raises:
        UpstreamError: A part does not answer.
        ProbeError: The change was refused. Carries the engine's message.
    """
    for card in cards:
        answer = ask(card, method, path, body)
        elsewhere = refusal(answer).get("code") == "site_elsewhere" if body else answer.status_code == 404
        if not (answer.is_error and elsewhere):
            break
    found = _checked(answer)
    for other in cards if body else ():
        if other is not card:  # the probe may have been on another part before
            ask(other, "DELETE", path)
    return found.json() if found.content else None


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        words = refusal(answer).get("message") or f"the engine answers {answer.status_code}: {answer.text[:200]}"
        raise ProbeError(str(words))
    return answer


def _table(probes: list[dict[str, Any]]) -> str:
    lines = [f"{'id':<20} {'site':<24} {'activation':<10} {'threshold':>9} {'auroc':>7}"]
    lines += [
        f"{p['id']:<20} {p['site']:<24} {p['activation']:<10} {_number(p['threshold']):>9} {_number(p['auroc']):>7}"
        for p in probes
    ]
    return "\n".join(lines)


def _training_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'label':<16} {'site':<22} {'auroc':>7} {'shuffled':>9} {'threshold':>9} {'fpr':>7} {'recall':>7} {'positives':>9}"
    ]
    lines += [
        f"{r['id']:<16} {r['site']:<22} {r['auroc']:>7.4f} {r['control_auroc']:>9.3f} {r['threshold']:>9.3f} "
        f"{r['fpr']:>7.4f} {r['recall']:>7.3f} {r['positives']:>9.3f}" + ("" if r["kept"] else "   not kept")
        for r in rows
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
