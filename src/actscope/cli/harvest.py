"""actscope harvest: run a dataset through a model on many workers and store the rows of its tokens."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec.structs import replace

from actscope.cli.common import options
from actscope.cli.common.output import show
from actscope.cli.common.packages import is_table, require_model
from actscope.cli.common.settings_options import Given, with_settings
from actscope.errors import HarvestDamaged, HarvestError, SettingsError
from actscope.extras import EXTRAS, require
from actscope.runtime.writable import check_can_create

if TYPE_CHECKING:
    from actscope.harvest.driver import Report
    from actscope.harvest.plan import Proposal
    from actscope.harvest.settings import HarvestSettings
    from actscope.harvest.workers.contract import Crew
    from actscope.harvest.workers.messages import WorkerJob


@with_settings
def harvest(
    out: Annotated[
        str,
        typer.Option(
            help="Directory or bucket of the harvest: a path, s3://BUCKET/PREFIX, gs://… or az://….", metavar="PLACE"
        ),
    ],
    flags: Annotated[Given, options.HARVEST],
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where workers run: processes of this machine, or a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Maximum number of workers. 0: one with local, as many as fit on the cluster with ray.",
        ),
    ] = 0,
    ray_address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster to join. local starts one.",
            show_default="RAY_ADDRESS, or one on this machine",
        ),
    ] = "",
    cpus_per_worker: Annotated[
        float, typer.Option(min=0, metavar="N", help="CPUs of a worker on Ray. 0: as many as --threads.")
    ] = 0,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, metavar="N", help="GPUs of a worker on Ray, also a fraction such as 0.5.")
    ] = 0,
    lease: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Time without a heartbeat after which the units of another harvest are taken over.",
        ),
    ] = 60.0,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Allow plain HTTP to storage on other machines.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the number of units, rows and bytes, and change nothing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte of the harvest at --out, and exit.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Run a dataset through a model on many workers, and keep the rows of its tokens as shards with checksums.

    The same command continues a harvest that was stopped. Several at once with one --out share the work. --model and --dataset
    are required, except with --verify, which exits 1 when bytes are missing or changed.

    Example: actscope harvest --model actscope/builtin --dataset builtin --sites first,last --texts 2000 --out rows
    """
    _check_storage(out)
    if verify:
        _verify(out, allow_http=allow_http, as_json=as_json)
        return
    if not flags.get("model") or not flags.get("dataset"):
        raise SettingsError("--model and --dataset are required, e.g. --model actscope/builtin --dataset builtin")
    settings = options.HARVEST.make(flags)
    _require_packages(settings, engine)
    if gpus_per_worker and settings.device == "auto":
        settings = replace(settings, device="cuda")
    from actscope.harvest.storage.opening import is_local
    from actscope.harvest.workers.messages import WorkerJob

    where = _whole(out)
    job = WorkerJob(settings=settings, out=where, allow_http=allow_http)
    crew = _crew(engine, job, workers, ray_address, cpus_per_worker, gpus_per_worker)
    if dry_run:
        _propose(crew, settings, as_json)
    else:
        if is_local(out):
            check_can_create(Path(where), "--out", SettingsError)
        _run(crew, where, allow_http, lease, as_json)


def _require_packages(settings: HarvestSettings, engine: str) -> None:
    """Raise MissingExtra if a package that the workers will need is not installed."""
    table, ray = is_table(settings.dataset), engine == "ray"
    packages = (*(EXTRAS["feed"] if table else ()), *(EXTRAS["ray"] if ray else ()))
    extra = "ray" if ray else "feed" if table else "hf"
    if settings.reader == "hf":
        require_model(settings.model, *packages, extra=extra)
    elif packages:
        require(extra, *packages)


def _check_storage(out: str) -> None:
    """Raise MissingExtra if the place is a bucket, and the package for object storage is not installed."""
    from actscope.harvest.storage.opening import is_local

    if not is_local(out):
        require("harvest")


def _whole(out: str) -> str:
    """Return a directory as an absolute path, since workers may have another working directory. A bucket stays as it is."""
    from actscope.harvest.storage.opening import is_local

    return str(Path(out.removeprefix("file://")).absolute()) if is_local(out) else out


def _crew(engine: str, job: WorkerJob, workers: int, address: str, cpus: float, gpus: float) -> Crew:
    if engine == "ray":
        from actscope.harvest.workers.ray import RayCrew

        return RayCrew(job, workers, address=address, cpus_per_worker=cpus, gpus_per_worker=gpus)
    if address or cpus or gpus:
        raise SettingsError("--ray-address, --cpus-per-worker and --gpus-per-worker are for --engine ray")
    from actscope.harvest.workers.local import LocalCrew

    return LocalCrew(job, workers or 1)


def _run(crew: Crew, out: str, allow_http: bool, lease: float, as_json: bool) -> None:
    from actscope.cli.common.progress import ProgressBar
    from actscope.harvest.driver import harvest as carry_out
    from actscope.harvest.storage import open_storage

    done, total = 0, 0

    def told(stage: str, so_far: int, all_of: int) -> None:
        nonlocal done, total
        done, total = so_far, all_of
        bars.update(stage, so_far, all_of)

    def kept() -> str:
        return f"{out} has {done} of {total} units" if total else f"{out} keeps the units that it had"

    try:
        # Ray prints messages of its raylets on standard output and has no option against it
        with ProgressBar() as bars, redirect_stdout(sys.stderr):
            report = carry_out(open_storage(out, allow_http=allow_http), crew, told, lease_s=lease)
    except KeyboardInterrupt:
        show(f"interrupted: {kept()}; repeat the command to continue", err=True)
        raise
    except OSError as error:
        if not total or isinstance(error, HarvestDamaged):
            raise
        raise HarvestError(f"{error}\n{kept()}; repeat the command to continue") from error
    show(json.dumps(summary_of(report, out)) if as_json else _told(report, out))


def summary_of(report: Report, out: str) -> dict[str, Any]:
    """Return the summary that `--json` prints. The manifest has everything."""
    import msgspec

    manifest = report.manifest
    return {
        "path": out,
        "plan": manifest.plan_id,
        "units": manifest.plan.n_units,
        "units_here": report.units_here,
        "shards": len(manifest.shards),
        "texts": manifest.texts,
        "tokens": manifest.tokens,
        "left_over": manifest.left_over,
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "seconds": report.seconds,
        "tokens_per_s": report.tokens_here / report.seconds if report.seconds else 0.0,
        "workers_lost": report.workers_lost,
        "sites": msgspec.to_builtins(manifest.sites),
    }


def _told(report: Report, out: str) -> str:
    summary = summary_of(report, out)
    left = f", {summary['left_over']} tokens left over" if summary["left_over"] else ""
    lines = [
        f"{out}: {summary['rows']} rows of {summary['texts']} texts at {len(summary['sites'])} sites, "
        f"{summary['shards']} shards, {summary['bytes'] / (1 << 20):.1f} MiB{left}",
        f"  {summary['units_here']} of {summary['units']} units here, {summary['tokens_per_s']:.0f} tokens/s",
    ]
    lines += [f"  {summary['workers_lost']} workers were lost; their units were computed again"] * bool(
        report.workers_lost
    )
    for site, found in report.manifest.sites.items():
        bad = f", {found.not_finite} rows are not finite" if found.not_finite else ""
        if found.mean is not None:
            lines.append(f"  {site}: mean {found.mean:.4g}, std {found.std:.4g}, mean norm {found.mean_norm:.4g}{bad}")
    return "\n".join(lines)


def _propose(crew: Crew, settings: HarvestSettings, as_json: bool) -> None:
    import msgspec

    try:
        proposal = crew.propose()
    finally:
        crew.close()
    plan = proposal.plan
    estimate = estimate_of(proposal)
    if as_json:
        show(json.dumps({"plan": msgspec.to_builtins(plan), "id": plan.id, **estimate}))
        return
    show(
        f"{plan.model} ({plan.revision[:12] or 'local'}) at {', '.join(plan.sites)}: {plan.texts} of {plan.dataset_texts} "
        f"texts of {plan.dataset}\n"
        f"  {plan.n_units} units; about {estimate['rows']} rows, {estimate['bytes'] / (1 << 20):.1f} MiB. A worker holds "
        f"one unit in memory, about {estimate['unit_bytes'] / (1 << 20):.1f} MiB"
    )


def estimate_of(proposal: Proposal) -> dict[str, Any]:
    """Return the numbers of units, rows and bytes. Rows and bytes are estimated from a sample of the texts."""
    from actscope.harvest.shards.sizes import row_bytes

    plan, row = proposal.plan, row_bytes(proposal.plan)
    rows = round(proposal.rows_per_text * plan.texts)
    return {
        "units": plan.n_units,
        "rows": rows,
        "bytes": rows * row,
        "unit_bytes": round(proposal.rows_per_text * min(plan.unit_texts, plan.texts)) * row,
    }


def _verify(out: str, *, allow_http: bool, as_json: bool) -> None:
    from pathlib import Path

    from actscope.cli.common.progress import ProgressBar
    from actscope.harvest.storage import open_storage
    from actscope.harvest.storage.opening import is_local
    from actscope.harvest.verifying import verify

    if is_local(out) and not Path(_whole(out)).is_dir():
        raise SettingsError(f"--out {out}: there is no such directory")
    with ProgressBar() as bars:
        verdict = verify(open_storage(out, allow_http=allow_http), bars.update)
    show(json.dumps(verdict.as_dict()) if as_json else verdict.as_text())
    if not verdict.ok:
        raise typer.Exit(1)
