"""Probe training: Fisher's linear discriminant, with a logistic curve fitted to its scores.

The direction is `inverse(covariance) @ (mean of positives - mean of negatives)` (Fisher 1936, "The use of multiple measurements
in taxonomic problems"; on activations: Marks & Tegmark 2023, "The Geometry of Truth"). All labels of a site share its covariance,
so each label and each shuffled control costs only a linear solve. Scale and bias come from logistic regression on the projected
score (Platt 1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actscope.errors import MissingExtra, ProbeError
from actscope.probes.format import Probe, ProbeInfo

#: Texts below FIT are fitted, those up to CHOOSE choose site and threshold, the others measure.
FIT, CHOOSE = 0.7, 0.85
PARTS = {"fitting": (0.0, FIT), "choosing": (FIT, CHOOSE), "held-out": (CHOOSE, 1.0)}
CONTROL_RUNS = 5
TARGET_FPR = 0.01
MIN_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of one site with one label: rows float32 [n, d], labels bool [n], text numbers int [n]."""

    rows: np.ndarray
    labels: np.ndarray
    texts: np.ndarray

    def part(self, low: float, high: float) -> Examples:
        """Return the rows of the texts whose place in a fixed shuffle is in [low, high)."""
        place = place_of(self.texts)
        chosen = (place >= low) & (place < high)
        return Examples(self.rows[chosen], self.labels[chosen], self.texts[chosen])


def too_few(labels: np.ndarray, texts: np.ndarray) -> str:
    """Return which part of the texts has too few tokens of a kind to fit a probe, or an empty text. Needs no rows.

    Args:
        labels: bool [n], whether each token has the label.
        texts: int64 [n], the number of each token's text.
    """
    place = place_of(texts)
    for name, (low, high) in PARTS.items():
        part = (place >= low) & (place < high)
        n, positive = int(part.sum()), int(labels[part].sum())
        if min(positive, n - positive) < MIN_EXAMPLES:
            return _says_too_few(name, positive, n)
    return ""


def _says_too_few(part: str, positive: int, n: int) -> str:
    needed = f"at least {MIN_EXAMPLES} of each kind are needed; give more text"
    return f"the {part} texts have {positive} positive tokens of {n}; {needed}"


@dataclass(frozen=True, slots=True)
class ShrunkCovariance:
    """Covariance of a site's fitting rows, shrunk towards a multiple of the identity: float64 [d, d]."""

    matrix: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, texts: np.ndarray, shrinkage: float = 1e-3) -> ShrunkCovariance:
        """Estimate it from rows float32 [n, d]. Only rows of the fitting texts are used."""
        return cls.of_rows(rows[place_of(texts) < FIT], shrinkage)

    @classmethod
    def of_rows(cls, rows: np.ndarray, shrinkage: float = 1e-3) -> ShrunkCovariance:
        """Estimate it from rows float32 [n, d], all of which are fitting rows."""
        centred = rows - rows.mean(0)
        matrix = (centred.T @ centred).astype(np.float64) / max(1, len(rows) - 1)
        d = len(matrix)
        return cls((1 - shrinkage) * matrix + shrinkage * np.trace(matrix) / d * np.eye(d))

    def discriminant(self, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return Fisher's direction: float32 [d], unit length."""
        difference = rows[labels].mean(0, dtype=np.float64) - rows[~labels].mean(0, dtype=np.float64)
        direction = np.linalg.solve(self.matrix, difference)
        return np.asarray(direction / (np.linalg.norm(direction) + 1e-30), np.float32)


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted direction and its measured quality.

    Attributes:
        weight: float32 [d].
        bias: Bias of the logistic score.
        choosing_auroc: AUROC on the texts that choose the site and the threshold.
        auroc: AUROC on the held-out texts.
        control: Mean held-out AUROC of CONTROL_RUNS trainings on shuffled labels; None if not requested.
        threshold: Score with a false-positive rate of TARGET_FPR on the choosing texts.
        fpr: False-positive rate on the held-out texts.
        recall: True-positive rate on the held-out texts.
        positives: Share of positive rows over all texts.
        examples: Held-out rows and their scores, for the probe's test vectors.
    """

    weight: np.ndarray
    bias: float
    choosing_auroc: float
    auroc: float
    control: float | None
    threshold: float
    fpr: float
    recall: float
    positives: float
    examples: tuple[np.ndarray, np.ndarray]  # rows float32 [4, d], scores float32 [4]


def place_of(texts: np.ndarray) -> np.ndarray:
    """Return a number in [0, 1) per text, the same on every machine (Knuth's multiplicative hash)."""
    return ((texts.astype(np.uint64) * np.uint64(2654435761)) % np.uint64(1 << 32)).astype(np.float64) / (1 << 32)


def fit(
    examples: Examples, covariance: ShrunkCovariance, *, what: str = "label", seed: int = 0, with_control: bool = True
) -> Fit:
    """Fit a probe, choose its threshold, and measure it on texts that took part in neither.

    Args:
        examples: All rows of one site with their labels; split by text into 70 % fitting, 15 % choosing, 15 % held out.
        covariance: Covariance of the site.
        what: Name of the label in messages.
        seed: Seed of the shuffled controls.
        with_control: Also train on shuffled labels.

    Returns:
        The fit.

    Raises:
        ProbeError: A part has fewer than MIN_EXAMPLES rows of either class.
        MissingExtra: scikit-learn is not installed.
    """
    parts = examples.part(0, FIT), examples.part(FIT, CHOOSE), examples.part(CHOOSE, 1)
    return fit_parts(*parts, covariance, what=what, seed=seed, with_control=with_control)


def fit_parts(
    train: Examples,
    choosing: Examples,
    held: Examples,
    covariance: ShrunkCovariance,
    *,
    what: str = "label",
    seed: int = 0,
    with_control: bool = True,
) -> Fit:
    """Fit a probe on texts that the caller has divided, for example by wording.

    Args:
        train: Rows that are fitted.
        choosing: Rows that choose the threshold.
        held: Rows that measure.
        covariance: Covariance of the site.
        what: Name of the label in messages.
        seed: Seed of the shuffled controls.
        with_control: Also train on shuffled labels.

    Returns:
        The fit.

    Raises:
        ProbeError: A part has fewer than MIN_EXAMPLES rows of either class.
        MissingExtra: scikit-learn is not installed.
    """
    for part, name in ((train, "fitting"), (choosing, "choosing"), (held, "held-out")):
        n, positive = len(part.labels), int(part.labels.sum())
        if min(positive, n - positive) < MIN_EXAMPLES:
            raise ProbeError(f"{what}: {_says_too_few(name, positive, n)}")
    weight, bias = _calibrate(covariance.discriminant(train.rows, train.labels), train)
    threshold = round(float(np.quantile(_sigmoid(choosing.rows @ weight + bias)[~choosing.labels], 1 - TARGET_FPR)), 4)
    scores = _sigmoid(held.rows @ weight + bias)
    control = [_control(covariance, train, held, seed + run) for run in range(CONTROL_RUNS if with_control else 0)]
    return Fit(
        weight=weight,
        bias=bias,
        choosing_auroc=_auroc(choosing.labels, choosing.rows @ weight),
        auroc=_auroc(held.labels, held.rows @ weight),
        control=float(np.mean(control)) if control else None,
        threshold=threshold,
        fpr=float(np.mean(scores[~held.labels] >= threshold)),
        recall=float(np.mean(scores[held.labels] >= threshold)),
        positives=float(np.mean(np.concatenate([train.labels, choosing.labels, held.labels]))),
        examples=_test_vectors(held, scores),
    )


def to_probe(result: Fit, *, label: str, site: str, model: str, revision: str) -> Probe:
    """Return a fit as a probe with sigmoid scores in [0, 1].

    Args:
        result: The fit.
        label: Name of the label; also the probe's id.
        site: Name of the site.
        model: Name of the model.
        revision: Revision of the model, or "".

    Raises:
        ProbeError: The label is not a valid id.
    """
    info = ProbeInfo(
        id=label,
        site=site,
        activation="sigmoid",
        bias=result.bias,
        label=label.replace("_", " "),
        description=f"linear probe for {label!r}, trained on labelled text; {result.recall:.0%} found at the threshold",
        threshold=result.threshold,
        fpr=round(result.fpr, 4),
        range=(0.0, 1.0),
        token_mask="special",
        model=model,
        revision=revision or None,
        auroc=round(result.auroc, 4),
        control_auroc=None if result.control is None else round(result.control, 4),
    )
    return Probe(info, result.weight, *result.examples)


def _calibrate(direction: np.ndarray, train: Examples) -> tuple[np.ndarray, float]:
    """Return weight and bias so that the sigmoid of a score is the label's probability at equal class frequency."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtra("probes", "scikit-learn") from error
    along = (train.rows @ direction)[:, None].astype(np.float64)
    spread = float(along.std()) or 1.0
    curve = LogisticRegression(class_weight="balanced").fit(along / spread, train.labels)
    return (direction * (curve.coef_[0, 0] / spread)).astype(np.float32), float(curve.intercept_[0])


def _control(covariance: ShrunkCovariance, train: Examples, held: Examples, seed: int) -> float:
    shuffled = np.random.default_rng(seed).permutation(train.labels)
    return _auroc(held.labels, held.rows @ covariance.discriminant(train.rows, shuffled))


def _test_vectors(held: Examples, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two held-out rows of each class and their scores."""
    chosen = np.concatenate([np.flatnonzero(held.labels)[:2], np.flatnonzero(~held.labels)[:2]])
    return held.rows[chosen].astype(np.float32), scores[chosen].astype(np.float32)


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -80, 80))))
