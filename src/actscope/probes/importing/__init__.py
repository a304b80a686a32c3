"""Probes from the files and objects of other tools: control vectors in GGUF, and fitted models of scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from actscope.errors import ProbeError
from actscope.near_miss import hinted
from actscope.probes.checkpoint import PICKLES, refuse_pickle
from actscope.probes.format import Probe, load_probe
from actscope.probes.hooks import stated_site
from actscope.probes.importing.control_vectors import read_control_vector
from actscope.probes.importing.linear_models import from_sklearn
from actscope.probes.importing.skops_file import load_skops

__all__ = ["from_sklearn", "import_probes", "load_skops", "read_control_vector"]


@hinted
def import_probes(
    path: Path,
    *,
    site: str | None = None,
    name: str = "",
    n_layers: int | None = None,
    model: str | None = None,
    revision: str | None = None,
) -> list[Probe]:
    """Make probes of a file. Nothing is unpickled.

    Args:
        path: A control vector (`.gguf`), a model of scikit-learn (`.skops`), or a probe in a format that `load_probe` reads.
        site: Site whose rows the probes read. Needed for `.skops`; a control vector states its own.
        name: Id of the probe, or the beginning of the ids of several. By default the file's name.
        n_layers: Number of the model's blocks, for a control vector; see `read_control_vector`.
        model: Name of the model that the probes are for; None fits any.
        revision: Revision of that model.

    Returns:
        The probes.

    Raises:
        ProbeError: The file cannot be read, is of another kind, or what it holds is not a linear probe. The message names the
            file and the remedy.
        MissingExtra: skops is not installed.
    """
    if path.suffix == ".gguf":
        if site is not None:
            raise ProbeError(f"{path}: a control vector states its sites, one for each direction; leave the site out")
        return read_control_vector(path, name=name, n_layers=n_layers, model=model, revision=revision)
    if path.suffix in (".skops", *PICKLES):
        if path.suffix != ".skops":
            raise ProbeError(f"{path}: {_pickled(path)}")
        if site is None:
            raise ProbeError(f"{path}: it does not say which rows it reads: give --site, e.g. layers.12.resid_post")
        found = load_skops(path)
        return from_sklearn(found, site=site, name=name or path.stem, model=model, revision=revision)
    probe = load_probe(path)
    told = {"id": name or None, "site": stated_site(site, probe.info.site), "model": model, "revision": revision}
    changed = {key: value for key, value in told.items() if value is not None}
    return [replace(probe, info=msgspec.structs.replace(probe.info, **changed))]


def _pickled(path: Path) -> str:
    """Return why a pickle is not read, and what to do."""
    if path.suffix not in (".pkl", ".pickle", ".joblib"):
        return str(refuse_pickle(path.name))
    load = f'joblib.load("{path.name}")' if path.suffix == ".joblib" else f'pickle.load(open("{path.name}", "rb"))'
    module = "joblib" if path.suffix == ".joblib" else "pickle"
    return (
        f"a pickle can run code when it is opened, so it is not opened. Where you trust the file, write it as skops:\n"
        f"  import {module}, skops.io\n"
        f'  skops.io.dump({load}, "{path.stem}.skops")'
    )
