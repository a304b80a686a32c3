"""Training probes on a model: labelled text through the taps, one discriminant for each label and site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from actscope.engines import builtin
from actscope.engines.builtin.text import generate
from actscope.engines.hf.labelled import LabelledRows, collect
from actscope.engines.hf.loading import LoadedModel
from actscope.errors import ProbeError
from actscope.probes import Probe
from actscope.probes.labels import LabelledText, known_labels
from actscope.probes.train import Examples, Fit, ShrunkCovariance, fit, to_probe
from actscope.sites import Site

#: A later site is taken only if it is better than an earlier one by more than this on the choosing texts.
WORTH_A_LAYER = 0.002

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A probe and the figures of its fit."""

    probe: Probe
    fit: Fit


def train_probes(
    loaded: LoadedModel,
    texts: Sequence[LabelledText],
    sites: Sequence[Site],
    labels: Sequence[str] | None = None,
    *,
    progress: Report = lambda stage, done, total: None,
) -> list[Trained]:
    """One probe for each label, at the earliest of the best sites. `progress` gets (stage, done, total).

    Raises ProbeError for an unknown label, and when a label that was asked for has too few examples.
    """
    known = known_labels(texts)
    chosen = list(labels or known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ProbeError(f"no text is labelled {', '.join(unknown)}; the labels are {', '.join(known)}")
    rows = collect(loaded, texts, sites, progress=lambda done, total: progress("reading texts", done, total))
    covariances = {site: ShrunkCovariance.of(rows.rows[site.name], rows.texts) for site in sites}
    trained = []
    for done, label in enumerate(chosen, 1):
        try:
            trained.append(_train(loaded, texts, rows, covariances, label))
        except ProbeError:
            if labels:
                raise  # asked for by name; of all labels, those with too few examples are left out
        progress("fitting probes", done, len(chosen))
    return trained


def _train(
    loaded: LoadedModel,
    texts: Sequence[LabelledText],
    rows: LabelledRows,
    covariances: dict[Site, ShrunkCovariance],
    label: str,
) -> Trained:
    known, held = rows.labels(texts, label)

    def fit_at(site: Site, with_control: bool) -> Fit:
        examples = Examples(rows.rows[site.name][known], held[known], rows.texts[known])
        return fit(examples, covariances[site], what=f"label {label!r}", with_control=with_control)

    fits = [(site, fit_at(site, False)) for site in covariances]
    best = max(result.choosing_auroc for _, result in fits)
    site = next(site for site, result in fits if result.choosing_auroc >= best - WORTH_A_LAYER)
    result = fit_at(site, True)
    return Trained(to_probe(result, label=label, site=site.name, model=loaded.name, revision=loaded.revision), result)


def builtin_texts(loaded: LoadedModel, n: int, seed: int = 7) -> list[LabelledText]:
    """The project's own labelled text: chats and stories for the built-in model, stories alone for any other."""
    kind = "mixed" if loaded.name == builtin.NAME else "story"
    return [LabelledText(text.text, text.spans) for text in islice(generate(seed, kind), n)]
