"""Default probes of a model, trained on the built-in text at its first start and cached."""

from __future__ import annotations

import sys

from actscope.engines.hf.loading import LoadedModel, cache_dir
from actscope.engines.hf.probe_training import builtin_texts, train_probes
from actscope.errors import MissingExtra
from actscope.probes import Probe, load_probes, log_left_out, save_probe
from actscope.sites import select

TEXTS = 600
MIN_AUROC = 0.9
SITES = "first,middle,last"


def default_probes(loaded: LoadedModel) -> list[Probe]:
    """Return the cached probes of a model, or train and cache them.

    Only probes with a held-out AUROC of at least `MIN_AUROC`, which can fire, are kept. If a package for training is not
    installed, the result is empty and a message goes to standard error.
    """
    directory = cache_dir("probes", loaded)
    found = load_probes(directory, log_left_out)
    if found:
        return found
    _say(f"no probes for {loaded.name} yet: training some on the built-in text; they are kept in {directory}")
    try:
        trained = train_probes(loaded, builtin_texts(loaded, TEXTS), select(SITES, loaded.n_layers), progress=_report)
    except MissingExtra as error:
        _say(f"none could be trained: {error}")
        return []
    good = [t.probe for t in trained if not t.why_not(MIN_AUROC)]
    for probe in good:
        save_probe(probe, directory / f"{probe.id}.safetensors")
    _say(f"{len(good)} of {len(trained)} labels reach a held-out AUROC of {MIN_AUROC}: {', '.join(p.id for p in good)}")
    for result in trained:
        if reason := result.why_not(MIN_AUROC):
            _say(f"no probe for {result.probe.id}: {reason}")
    return good


def _report(stage: str, done: int, total: int) -> None:
    if done == total or done % max(1, total // 10) == 0:
        _say(f"{stage}: {done} of {total}")


def _say(message: str) -> None:
    print(f"actscope: {message}", file=sys.stderr, flush=True)
