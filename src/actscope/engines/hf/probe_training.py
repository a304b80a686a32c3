"""Train probes on a model: extract rows of labelled texts, and fit one linear discriminant per label and site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from actscope.engines import builtin
from actscope.engines.builtin.text import generate
from actscope.engines.hf.labelled import LabelledRows, collect, tokens_of
from actscope.engines.hf.loading import LoadedModel
from actscope.errors import ProbeError
from actscope.probes import Probe
from actscope.probes.label_check import trainable_labels
from actscope.probes.labels import LabelledText
from actscope.probes.train import Examples, Fit, ShrunkCovariance, fit, to_probe, too_few
from actscope.sites import Site

#: A later site is preferred only if its AUROC on the texts for selection is better by more than this.
WORTH_A_LAYER = 0.002

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A probe and the statistics of its fit."""

    probe: Probe
    fit: Fit

    def why_not(self, min_auroc: float) -> str:
        """Return why the probe is of no use, or an empty text: its AUROC is too low, or it can never fire."""
        fit = self.fit
        if not fit.auroc >= min_auroc:
            return f"held-out AUROC {fit.auroc:.4f}, at least {min_auroc:g} is wanted; give more texts or other sites"
        if not fit.recall > 0:
            return (
                f"recall 0: no held-out token reaches its threshold {fit.threshold:g} (1 % false positives), so it could not "
                "fire; give more texts, or texts in which the label is clearer"
            )
        return ""


def train_probes(
    loaded: LoadedModel,
    texts: Sequence[LabelledText],
    sites: Sequence[Site],
    labels: Sequence[str] | None = None,
    *,
    progress: Report = lambda stage, done, total: None,
    skipped: Callable[[str, str], None] = lambda label, reason: None,
    left_out: Callable[[int, int], None] = lambda used, given: None,
) -> list[Trained]:
    """Train one probe per label, at the earliest site whose AUROC is within `WORTH_A_LAYER` of the best.

    Args:
        loaded: The model.
        texts: Labelled texts.
        sites: Candidate sites.
        labels: Labels to train; None for all that have enough examples.
        progress: Called with (stage, done, total).
        skipped: Called with (label, reason) for each label that has too few examples. The others are trained.
        left_out: Called with (texts used, texts given) if the rows of all texts would not fit into memory.

    Returns:
        The probes, in the order of the labels.

    Raises:
        ProbeError: No text has a requested label, none of the requested labels has enough examples, or no label has.
        EngineError: The model failed on a text.
    """
    chosen, reasons = trainable_labels(texts, labels or ())
    tokens = tokens_of(loaded, texts)
    short = {label: reason for label in chosen if (reason := _too_few(tokens, texts, label))}
    for label, reason in {**reasons, **short}.items():
        skipped(label, reason)
    chosen = [label for label in chosen if label not in short]
    reasons |= short
    if not chosen:
        return _none(reasons, labels)
    rows = collect(loaded, texts, sites, progress=lambda done, total: progress("reading texts", done, total))
    if rows.texts[-1] < tokens.texts[-1]:
        left_out(int(rows.texts[-1]) + 1, len(texts))
    covariances = {site: ShrunkCovariance.of(rows.rows[site.name], rows.texts) for site in sites}
    trained = []
    for done, label in enumerate(chosen, 1):
        try:
            trained.append(_train(loaded, texts, rows, covariances, label))
        except ProbeError as error:
            reasons[label] = str(error).removeprefix(f"label {label!r}: ")
            skipped(label, reasons[label])
        progress("fitting probes", done, len(chosen))
    return trained or _none(reasons, labels)


def _none(reasons: Mapping[str, str], labels: Sequence[str] | None) -> list[Trained]:
    """Return no probes. Raises ProbeError if labels were asked for."""
    if labels:
        raise ProbeError("\n".join(f"label {label!r}: {reason}" for label, reason in reasons.items()))
    return []


def _too_few(tokens: LabelledRows, texts: Sequence[LabelledText], label: str) -> str:
    """Return why the tokens of the texts cannot train a label, or an empty text. The check before the load only counts bytes."""
    known, held = tokens.labels(texts, label)
    return too_few(held[known], tokens.texts[known])


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
    """Generate the built-in labelled texts: chats and stories for the built-in model, only stories for other models."""
    kind = "mixed" if loaded.name == builtin.NAME else "story"
    return [LabelledText(text.text, text.spans) for text in islice(generate(seed, kind), n)]
