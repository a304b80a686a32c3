"""Fitted models of scikit-learn as probes: scalers are folded into weight and bias, and the scores are the library's own.

A linear step `T(x) = x @ M + t` before scores `T(x) @ w + b` is folded as `w' = M @ w`, `b' = b + t @ w`; for a scaler,
`w' = w / scale` and `b' = b - w @ (mean / scale)`. Everything is computed in float64 and rounded once. The bias is chosen so that
the rounded weight gives the exact score of the scaler's mean.

The activation is sigmoid where the library's probability of a class is the sigmoid of its decision function, and identity
elsewhere: the scores are then those of `decision_function` or `predict`. A probability of more than two classes is a softmax,
which no probe of one class can compute. Source: scikit-learn 1.9.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from actscope.errors import ProbeError
from actscope.near_miss import hinted
from actscope.probes.format import Probe, ProbeInfo

_REGRESSORS = (
    "ARDRegression", "BayesianRidge", "ElasticNet", "ElasticNetCV", "HuberRegressor", "Lars", "LarsCV", "Lasso", "LassoCV",
    "LassoLars", "LassoLarsCV", "LassoLarsIC", "LinearRegression", "LinearSVR", "OrthogonalMatchingPursuit",
    "OrthogonalMatchingPursuitCV", "PassiveAggressiveRegressor", "QuantileRegressor", "Ridge", "RidgeCV", "SGDRegressor",
    "TheilSenRegressor",
)  # fmt: skip
#: Classifiers whose scores are those of decision_function. A class of several is scored against the rest.
_DECISIONS = ("LinearSVC", "PassiveAggressiveClassifier", "Perceptron", "RidgeClassifier", "RidgeClassifierCV")
_LOGISTIC = ("LogisticRegression", "LogisticRegressionCV")
_SELECTIONS = (
    "GenericUnivariateSelect", "RFE", "RFECV", "SelectFdr", "SelectFpr", "SelectFromModel", "SelectFwe", "SelectKBest",
    "SelectPercentile", "SequentialFeatureSelector", "VarianceThreshold",
)  # fmt: skip
_SEARCHES = ("GridSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV", "RandomizedSearchCV")
_REASONS = {
    "CalibratedClassifierCV": (
        "its probability is a mean over folds of a calibrated score, which is not one direction; import the classifier that "
        "it calibrates (calibrated.estimator), fitted"
    ),
    "MLPClassifier": "a network with hidden layers is not one direction",
    "MLPRegressor": "a network with hidden layers is not one direction",
    "Normalizer": "it divides each row by its own norm, which is not linear",
    "ColumnTransformer": "it treats columns apart; fit a scaler on whole rows",
    "TransformedTargetRegressor": "its predictions are transformed; import its regressor_",
}
#: Rows on which a probe is compared with its model before it is returned, and which it keeps as test vectors.
_TEST_ROWS = 8
_MOST_NUMBERS = 1 << 27
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class _Linear:
    """Scores `rows @ weight + bias`: weight float64 [d, k], bias float64 [k]; one activation for all columns."""

    weight: np.ndarray
    bias: np.ndarray
    activation: str
    labels: tuple[str, ...]
    threshold: float | None
    meaning: str
    gain: float = 1.0  # weight and bias are this many times the library's


@hinted
def from_sklearn(
    estimator: object,
    *,
    site: str,
    name: str = "",
    model: str | None = None,
    revision: str | None = None,
) -> list[Probe]:
    """Make probes of a fitted linear model of scikit-learn, alone or at the end of a Pipeline.

    Args:
        estimator: LogisticRegression, LinearSVC, SVC with a linear kernel, RidgeClassifier, SGDClassifier, Perceptron,
            LinearDiscriminantAnalysis, OneVsRestClassifier of these, or a linear regressor such as Ridge. In a Pipeline, it may
            follow StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, TruncatedSVD and selections of columns. A
            search such as GridSearchCV stands for its best estimator.
        site: Site whose rows the model was fitted on, such as `layers.12.resid_post`.
        name: Id of the probe. Of several classes or targets, each probe's id is `<name>-<class>`. By default the class's name.
        model: Name of the language model that the probes are for; None fits any.
        revision: Revision of that model.

    Returns:
        One probe for a binary classifier, of its second class, or a regressor with one target; else one for each class or
        target. The scores are those of `predict_proba` (activation sigmoid) or of `decision_function` or `predict` (identity),
        to 1e-5 for rows of float64 and to float32's precision for others. Each probe has test vectors.

    Raises:
        ProbeError: The estimator is not fitted, not linear, or its scores cannot be computed to 1e-4 in float32. The message
            names the class and the reason.
    """
    steps, last = _unrolled(estimator)
    found = _read(last)
    weight, bias = found.weight, found.bias
    centre, spread = np.zeros(len(weight)), np.ones(len(weight))
    for step in reversed(steps):
        weight, bias, centre, spread = _folded(step, weight, bias, centre, spread)
    if not (np.abs(weight) < np.finfo(np.float32).max).all() or not np.isfinite(bias).all():
        raise ProbeError(f"{_kind(last)}: its folded weights hold NaN, infinity or numbers beyond float32")
    rounded = weight.astype(np.float32)
    bias = bias + centre @ (weight - rounded)  # the score of the centre stays exact
    rows = _test_rows(centre, spread)
    exact = _library_scores(estimator, last, found, rows)
    if exact is None:
        exact = _activated(rows.astype(np.float64) @ rounded + bias, found.activation)
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused by `_compared`
        scores = exact.astype(np.float32)
    probes = []
    for i, probe_id in enumerate(_ids(name, found.labels)):
        info = ProbeInfo(
            id=probe_id,
            site=site,
            activation=found.activation,
            bias=float(bias[i]),
            label=found.labels[i],
            description=found.meaning,
            threshold=found.threshold,
            model=model,
            revision=revision,
        )
        probes.append(_compared(Probe(info, np.ascontiguousarray(rounded[:, i]), rows, scores[:, i])))
    return probes


def _compared(probe: Probe) -> Probe:
    """Return the probe. Raises ProbeError if its scores in float32 are not those of its model."""
    exact = probe.test_scores
    with np.errstate(all="ignore"):  # scores beyond float32 are infinite, and refused below
        worst = float(np.max(np.abs(probe.score(probe.test_inputs) - exact) / (1 + np.abs(exact))))
    if not worst <= _TOLERANCE:
        raise ProbeError(
            f"probe {probe.id!r}: in float32 its scores differ from the model's by {worst:.2g} (relative): the means that its "
            "scaler takes away are too large beside its scales. Fit it on rows without those dimensions"
        )
    return probe


def _library_scores(estimator: object, last: object, found: _Linear, rows: np.ndarray) -> np.ndarray | None:
    """Return the library's own scores of rows, float64 [n, k], to which the probes are compared.

    Returns None for the estimators of libsvm, whose C code trusts the arrays of a file.

    Raises:
        ProbeError: The library cannot compute them.
    """
    if _kind(last) in ("SVC", "NuSVC"):
        return None
    name = "predict" if _kind(last) in _REGRESSORS else "decision_function"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns without names
            z = np.asarray(cast("Callable[[np.ndarray], object]", getattr(estimator, name))(rows.astype(np.float64)))
        z = z.astype(np.float64).reshape(len(rows), len(found.labels)) * found.gain
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise ProbeError(f"{_kind(last)}: its {name} fails on rows of width {rows.shape[1]}: {error}") from error
    return _activated(z, found.activation)


def _test_rows(centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return rows like those of the fit, float32 [8, d]: the scaler's centre, and its spread around it."""
    noise = np.random.default_rng(0).standard_normal((_TEST_ROWS, len(centre)))
    noise[0] = 0
    with np.errstate(over="ignore"):
        rows = (centre + spread * noise).astype(np.float32)
    return np.asarray(np.nan_to_num(rows, posinf=0, neginf=0))


def _activated(z: np.ndarray, activation: str) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -500, 500)))) if activation == "sigmoid" else z


def _unrolled(estimator: object) -> tuple[list[object], object]:
    """Return the steps before the last estimator, from nested pipelines and searches, and that estimator."""
    kind = _kind(estimator)
    if kind in _SEARCHES:
        return _unrolled(_attribute(estimator, "best_estimator_"))
    if kind != "Pipeline":
        return [], estimator
    parts = [step for _, step in cast("list[tuple[str, object]]", _attribute(estimator, "steps"))]
    steps: list[object] = []
    for part in parts[:-1]:
        before, last = _unrolled(part)
        steps += [*before, last]
    before, last = _unrolled(parts[-1])
    return [*steps, *before], last


def _kind(estimator: object) -> str:
    """Return the class's name. Raises ProbeError for a class that is not scikit-learn's own: it may compute anything."""
    kind = type(estimator)
    if estimator is None or isinstance(estimator, str):
        return str(estimator)
    if kind.__module__.partition(".")[0] != "sklearn":
        raise ProbeError(
            f"{kind.__module__}.{kind.__qualname__} is not a class of scikit-learn, so its scores are not known"
        )
    return kind.__name__


def _attribute(estimator: object, name: str) -> object:
    found = getattr(estimator, name, None)
    if found is None:
        raise ProbeError(f"{_kind(estimator)} has no {name}: it is not fitted, or not linear; call fit first")
    return found


def _array(estimator: object, name: str) -> np.ndarray:
    """Return a fitted attribute, float64, dense. Raises ProbeError if it is absent or not finite."""
    found = _attribute(estimator, name)
    if math.prod(cast("Sequence[int]", getattr(found, "shape", ()))) > _MOST_NUMBERS:
        raise ProbeError(f"{_kind(estimator)}: {name} declares more than {_MOST_NUMBERS} numbers")
    dense = cast("Callable[[], object]", found.toarray)() if hasattr(found, "toarray") else found
    try:
        array = np.asarray(dense, np.float64)
    except (TypeError, ValueError) as error:
        raise ProbeError(f"{_kind(estimator)}: {name} holds no numbers: {error}") from error
    if not np.isfinite(array).all():
        raise ProbeError(f"{_kind(estimator)}: {name} holds NaN or infinity")
    return array


def _read(estimator: object) -> _Linear:
    """Return the scores of the last estimator. Raises ProbeError, with the reason, for one that is not linear."""
    kind = _kind(estimator)
    if kind == "OneVsRestClassifier":
        return _one_against_rest(estimator)
    if kind in _REGRESSORS:
        weight, bias = _coefficients(estimator)
        labels = [kind] if weight.shape[1] == 1 else [str(i) for i in range(weight.shape[1])]
        return _Linear(weight, bias, "identity", tuple(labels), None, f"prediction of scikit-learn's {kind}")
    if kind in (*_LOGISTIC, *_DECISIONS, "SGDClassifier", "LinearDiscriminantAnalysis", "SVC", "NuSVC"):
        return _classifier(estimator, kind)
    reason = _REASONS.get(kind, "it is not one linear score, or not known here")
    raise ProbeError(f"{kind} cannot be made into a probe: {reason}")


def _classifier(estimator: object, kind: str) -> _Linear:
    classes = [str(label) for label in cast("Sequence[object]", _attribute(estimator, "classes_"))]
    if kind in ("SVC", "NuSVC"):
        if getattr(estimator, "kernel", None) != "linear":
            raise ProbeError(f"{kind} with kernel {getattr(estimator, 'kernel', None)!r} is not linear; use LinearSVC")
        if len(classes) != 2:
            raise ProbeError(
                f"{kind} compares pairs of its {len(classes)} classes; use LinearSVC or OneVsRestClassifier"
            )
    weight, bias = _coefficients(estimator)
    binary = len(classes) == 2
    if weight.shape[1] != (1 if binary else len(classes)):
        raise ProbeError(f"{kind}: {weight.shape[1]} directions do not fit its {len(classes)} classes")
    gain = 2.0 if binary and getattr(estimator, "multi_class", "") == "multinomial" else 1.0
    weight, bias = weight * gain, bias * gain  # before 1.7, it was a softmax over minus and plus the score
    labels = tuple(label[:200] for label in (classes[1:] if binary else classes))
    if _is_sigmoid(estimator, kind, binary):
        meaning = f"probability of class {classes[1]!r}" if binary else "probability of the class against the rest"
        return _Linear(weight, bias, "sigmoid", labels, 0.5, f"{meaning}, by scikit-learn's {kind}", gain)
    softmax = not binary and kind in (*_LOGISTIC, "LinearDiscriminantAnalysis")
    meaning = "logit (input of a softmax over the classes)" if softmax else "decision function"
    threshold = None if softmax else 0.0
    return _Linear(
        weight, bias, "identity", labels, threshold, f"{meaning} of scikit-learn's {kind}, not a probability", gain
    )


def _is_sigmoid(estimator: object, kind: str, binary: bool) -> bool:
    """Return whether the probability of a class, before any normalisation over classes, is the sigmoid of its score."""
    if kind in _LOGISTIC:
        return (
            binary or getattr(estimator, "multi_class", "") == "ovr" or getattr(estimator, "solver", "") == "liblinear"
        )
    if kind == "SGDClassifier":
        return getattr(estimator, "loss", "") in ("log", "log_loss")
    return kind == "LinearDiscriminantAnalysis" and binary


def _one_against_rest(estimator: object) -> _Linear:
    classes = [str(label) for label in cast("Sequence[object]", _attribute(estimator, "classes_"))]
    parts = []
    for inner in cast("Sequence[object]", _attribute(estimator, "estimators_")):
        if _kind(inner).startswith("_Constant"):
            raise ProbeError("OneVsRestClassifier: a class that all rows or none have: it has no direction")
        steps, last = _unrolled(inner)
        if steps:
            raise ProbeError("OneVsRestClassifier of a Pipeline: put the scaler before it instead")
        parts.append(_read(last))
    kinds = {(part.activation, part.threshold) for part in parts}
    if len(kinds) != 1 or any(part.weight.shape[1] != 1 for part in parts):
        raise ProbeError("OneVsRestClassifier: its estimators are not all binary and of one kind")
    labels = tuple(classes[1:] if len(parts) == 1 else classes)
    if len(labels) != len(parts):
        raise ProbeError(f"OneVsRestClassifier: {len(parts)} estimators do not fit its {len(classes)} classes")
    first = parts[0]
    meaning = f"{first.meaning}, one class against the rest"
    weight, bias = np.hstack([part.weight for part in parts]), np.hstack([part.bias for part in parts])
    return _Linear(weight, bias, first.activation, labels, first.threshold, meaning)


def _coefficients(estimator: object) -> tuple[np.ndarray, np.ndarray]:
    """Return weight [d, k] and bias [k]. Raises ProbeError if they do not fit together."""
    weight = np.atleast_2d(_array(estimator, "coef_")).T
    bias = np.atleast_1d(_array(estimator, "intercept_")).reshape(-1)
    if weight.ndim != 2 or not weight.size or bias.shape not in ((1,), weight.shape[1:]):
        raise ProbeError(
            f"{_kind(estimator)}: coef_ {list(weight.T.shape)} and intercept_ {list(bias.shape)} do not fit"
        )
    return weight, np.array(np.broadcast_to(bias, weight.shape[1:]))


def _folded(
    step: object, weight: np.ndarray, bias: np.ndarray, centre: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fold a linear step into the scores behind it.

    Args:
        step: The step.
        weight: float64 [d', k], of the scores of the step's output.
        bias: float64 [k].
        centre: float64 [d']: output of the middle of the data, for test rows.
        spread: float64 [d'].

    Returns:
        The same four, of the step's input.

    Raises:
        ProbeError: The step is not linear, or its width does not fit.
    """
    kind = _kind(step)
    if kind in ("None", "passthrough"):
        return weight, bias, centre, spread
    if getattr(step, "clip", False):
        raise ProbeError(f"{kind} with clip=True is not linear")
    if kind in ("PCA", "IncrementalPCA", "TruncatedSVD"):
        return _unprojected(step, kind, weight, bias, centre)
    if kind in _SELECTIONS:
        return _unselected(step, weight, bias, centre, spread)
    width = len(weight)
    if kind in ("StandardScaler", "RobustScaler"):
        mean = _optional(step, "mean_" if kind == "StandardScaler" else "center_", 0.0, width)
        if not getattr(step, "with_mean", True):
            mean = np.zeros(width)  # it has learnt the mean, and does not take it away
        scale = _optional(step, "scale_", 1.0, width)
    elif kind == "MinMaxScaler":
        scale = 1 / _optional(step, "scale_", None, width)
        mean = -_optional(step, "min_", None, width) * scale
    elif kind == "MaxAbsScaler":
        mean, scale = np.zeros(width), _optional(step, "scale_", None, width)
    else:
        raise ProbeError(
            f"{kind} cannot be folded into a probe: {_REASONS.get(kind, 'it is not known here as linear')}"
        )
    if not (scale > 0).all():
        raise ProbeError(f"{kind}: its scales must be above 0")
    folded = weight / scale[:, None]
    return folded, bias - mean @ folded, mean + scale * centre, scale * spread


def _optional(step: object, name: str, default: float | None, width: int) -> np.ndarray:
    """Return a fitted attribute of `width` numbers; where it is None, that many `default`."""
    if default is not None and getattr(step, name, None) is None:
        if not hasattr(step, "n_features_in_"):
            raise ProbeError(f"{_kind(step)} is not fitted; call fit first")
        return np.full(width, default)
    found = _array(step, name)
    if found.shape != (width,):
        raise ProbeError(f"{_kind(step)}: {name} has shape {list(found.shape)}, and {width} numbers are expected")
    return found


def _unprojected(
    step: object, kind: str, weight: np.ndarray, bias: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fold a projection `(x - mean) @ components'`, divided by the standard deviations if the PCA whitens."""
    components = _array(step, "components_")
    if components.ndim != 2 or len(components) != len(weight):
        raise ProbeError(f"{kind}: components_ {list(components.shape)} do not fit {len(weight)} coefficients")
    if getattr(step, "whiten", False):
        variance = _array(step, "explained_variance_")
        weight = weight / np.sqrt(np.maximum(variance, np.finfo(variance.dtype).eps))[:, None]
    folded = components.T @ weight
    width = components.shape[1]
    mean = np.zeros(width) if kind == "TruncatedSVD" else _optional(step, "mean_", 0.0, width)
    spread = np.ones(width) * max(float(np.abs(components.T @ centre).max(initial=0.0)), 1.0)
    return folded, bias - mean @ folded, mean, spread


def _unselected(
    step: object, weight: np.ndarray, bias: np.ndarray, centre: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give the columns that a selection drops the weight 0."""
    try:
        kept = np.asarray(cast("Callable[[], object]", _attribute(step, "get_support"))(), bool)
    except (ValueError, TypeError, AttributeError) as error:
        raise ProbeError(f"{_kind(step)} is not fitted: {error}") from error
    if int(kept.sum()) != len(weight):
        raise ProbeError(f"{_kind(step)}: it keeps {int(kept.sum())} columns, and {len(weight)} are expected")
    wide, middle, around = np.zeros((len(kept), weight.shape[1])), np.zeros(len(kept)), np.ones(len(kept))
    wide[kept], middle[kept], around[kept] = weight, centre, spread
    return wide, bias, middle, around


def _ids(name: str, labels: Sequence[str]) -> list[str]:
    """Return one id for each label: letters, digits, '.', '_' and '-', 64 at most, each once."""
    found: list[str] = []
    for number, label in enumerate(labels):
        parts = (name, label) if len(labels) > 1 else (name or label,)
        text = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(part for part in parts if part)).strip("._-")[:64] or "probe"
        found.append(text if text not in found else f"{text[:57]}-{number}")
    return found
