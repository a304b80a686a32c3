"""Models of scikit-learn as probes: the scores are those of the library, to 1e-5."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC

from actscope.errors import ProbeError
from actscope.probes import Probe, from_sklearn, import_probes, load_probe, save_probe

SITE = "layers.3.resid_post"
D = 24


def data(scale: float = 1.0, shift: float = 0.0, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Rows float64 [300, D] with columns of very different size, and labels."""
    generator = np.random.default_rng(5)
    rows = generator.normal(size=(300, D))
    hidden = rows @ generator.normal(size=(D, classes)) + generator.normal(size=(300, classes))
    labels = hidden.argmax(axis=1)
    sizes = np.logspace(-1, 1, D) * scale
    return rows * sizes + shift * sizes, labels


def equal(probes: list[Probe], rows: np.ndarray, expected: np.ndarray, *, float32: float = 1e-5) -> None:
    """Scores of float64 rows to 1e-5, and those of float32 rows to `float32`, both relative to 1 + |score|."""
    expected = expected.reshape(len(rows), -1)
    assert len(probes) == expected.shape[1]
    for probe, column in zip(probes, expected.T, strict=True):
        assert probe.info.site == SITE
        assert np.max(np.abs(probe.score(rows) - column) / (1 + np.abs(column))) < 1e-5
        assert np.max(np.abs(probe.score(rows.astype(np.float32)) - column) / (1 + np.abs(column))) < float32


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Fits need not converge here, and defaults of parameters may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


SCALERS = [
    StandardScaler(), StandardScaler(with_mean=False), StandardScaler(with_std=False), MinMaxScaler((-1, 3)), MaxAbsScaler(),
    RobustScaler(), PCA(8), PCA(8, whiten=True), TruncatedSVD(8), SelectKBest(k=7), "passthrough",
]  # fmt: skip


@pytest.mark.parametrize("scaler", SCALERS, ids=str)
def test_a_scaler_is_folded_into_weight_and_bias(scaler: Any) -> None:
    rows, labels = data()
    model = make_pipeline(scaler, LogisticRegression()).fit(rows, labels)
    probes = from_sklearn(model, site=SITE)
    equal(probes, rows, model.predict_proba(rows)[:, 1])
    assert (probes[0].info.activation, probes[0].info.threshold, probes[0].info.label) == ("sigmoid", 0.5, "1")


def test_several_steps_and_nested_pipelines_are_folded() -> None:
    rows, labels = data()
    inner = make_pipeline(MinMaxScaler(), PCA(12, whiten=True))
    model = make_pipeline(RobustScaler(), inner, make_pipeline(StandardScaler(), LinearSVC())).fit(rows, labels)
    equal(from_sklearn(model, site=SITE), rows, model.decision_function(rows), float32=1e-4)


@pytest.mark.parametrize(
    "estimator",
    [
        LinearSVC(), SVC(kernel="linear"), RidgeClassifier(), Perceptron(random_state=0),
        SGDClassifier(loss="hinge", random_state=0), SGDClassifier(loss="modified_huber", random_state=0),
    ],
    ids=str,
)  # fmt: skip
def test_a_classifier_without_a_sigmoid_probability_scores_its_decision_function(estimator: Any) -> None:
    rows, labels = data()
    model = make_pipeline(StandardScaler(), estimator).fit(rows, labels)
    probes = from_sklearn(model, site=SITE)
    equal(probes, rows, model.decision_function(rows), float32=1e-3)  # SGD sums terms of hundreds that cancel
    assert (probes[0].info.activation, probes[0].info.threshold) == ("identity", 0.0)
    np.testing.assert_array_equal(probes[0].score(rows) > 0, model.predict(rows) == 1)


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(fit_intercept=False), LogisticRegressionCV(), SGDClassifier(loss="log_loss", random_state=0),
                  LinearDiscriminantAnalysis(), LogisticRegression(solver="liblinear")], ids=str,
)  # fmt: skip
def test_a_binary_probability_that_is_a_sigmoid_stays_one(estimator: Any) -> None:
    rows, labels = data()
    model = make_pipeline(StandardScaler(), estimator).fit(rows, labels)
    probes = from_sklearn(model, site=SITE)
    equal(probes, rows, model.predict_proba(rows)[:, 1])
    assert probes[0].info.activation == "sigmoid"


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(), LinearDiscriminantAnalysis(), LinearSVC(), RidgeClassifier()], ids=str
)
def test_each_of_several_classes_scores_its_logit_since_a_softmax_is_no_sigmoid(estimator: Any) -> None:
    rows, labels = data(classes=3)
    model = make_pipeline(StandardScaler(), estimator).fit(rows, np.array(["red", "green", "blue"])[labels])
    probes = from_sklearn(model, site=SITE, name="colour")
    equal(probes, rows, model.decision_function(rows))
    assert [(p.id, p.info.label, p.info.activation) for p in probes] == [
        (f"colour-{name}", name, "identity") for name in ("blue", "green", "red")
    ]


def test_one_against_rest_is_a_sigmoid_for_each_class() -> None:
    """Before the library divides the probabilities by their sum: each is the probability of its own estimator."""
    rows, labels = data(classes=3)
    scaler = StandardScaler().fit(rows)
    model = OneVsRestClassifier(LogisticRegression()).fit(scaler.transform(rows), labels)
    probes = from_sklearn(make_pipeline(scaler, model), site=SITE, name="kind")
    own = [inner.predict_proba(scaler.transform(rows))[:, 1] for inner in model.estimators_]
    equal(probes, rows, np.stack(own, axis=1))
    of_sgd = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)).fit(rows, labels)
    probabilities = np.stack([probe.score(rows) for probe in from_sklearn(of_sgd, site=SITE, name="kind")], axis=1)
    np.testing.assert_allclose(
        probabilities / probabilities.sum(axis=1, keepdims=True), of_sgd.predict_proba(rows), atol=1e-5
    )


def test_a_regressor_scores_its_prediction_and_several_targets_are_several_probes() -> None:
    rows, labels = data()
    for model in (Ridge(), LinearRegression()):
        fitted = make_pipeline(StandardScaler(), model).fit(rows, labels * 3.5)
        equal(from_sklearn(fitted, site=SITE), rows, fitted.predict(rows))
    both = make_pipeline(StandardScaler(), Ridge()).fit(rows, np.stack([labels, -2.0 * labels], axis=1))
    probes = from_sklearn(both, site=SITE, name="target")
    equal(probes, rows, both.predict(rows))
    assert [probe.id for probe in probes] == ["target-0", "target-1"]


def test_a_search_stands_for_its_best_estimator() -> None:
    rows, labels = data()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 1.0]}).fit(rows, labels)
    equal(from_sklearn(search, site=SITE), rows, search.predict_proba(rows)[:, 1])


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_huge_and_tiny_scales_lose_nothing(scale: float, shift: float) -> None:
    rows, labels = data(scale, shift)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    equal(from_sklearn(model, site=SITE), rows, model.predict_proba(rows)[:, 1])
    ridge = make_pipeline(StandardScaler(), Ridge()).fit(rows, labels * 1e4)
    equal(from_sklearn(ridge, site=SITE), rows, ridge.predict(rows), float32=1e-3)  # a sum of large terms that cancel


def test_means_that_float32_cannot_take_away_are_refused() -> None:
    """Rows at a million times their spread: their scores exist in float64 only, and the engines compute in float32."""
    rows, labels = data(shift=1e6)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    with pytest.raises(ProbeError, match="too large beside its scales"):
        from_sklearn(model, site=SITE)


def test_a_probe_keeps_rows_with_the_librarys_scores_as_its_test_vectors(tmp_path: Path) -> None:
    rows, labels = data()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    (probe,) = from_sklearn(model, site=SITE, name="mood", model="me/llm")
    np.testing.assert_allclose(
        probe.test_scores, model.predict_proba(probe.test_inputs.astype(np.float64))[:, 1], atol=1e-6
    )
    save_probe(probe, tmp_path / "mood.safetensors")
    loaded = load_probe(tmp_path / "mood.safetensors")
    assert (loaded.id, loaded.info.model, len(loaded.test_scores)) == ("mood", "me/llm", 8)


class Mine(LogisticRegression):  # type: ignore[misc]  # scikit-learn has no types
    """A subclass, which may compute anything."""


def fitted(estimator: Any) -> Any:
    rows, labels = data()
    return estimator.fit(rows, labels)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LogisticRegression(), "no classes_: it is not fitted"),
        (lambda: make_pipeline(StandardScaler(), LogisticRegression()), "not fitted"),
        (lambda: fitted(CalibratedClassifierCV(LinearSVC())), "CalibratedClassifierCV.*mean over folds"),
        (lambda: fitted(GaussianNB()), "GaussianNB cannot be made into a probe"),
        (lambda: fitted(MLPClassifier(max_iter=1)), "MLPClassifier.*hidden layers"),
        (lambda: fitted(make_pipeline(Normalizer(), LogisticRegression())), "Normalizer.*not linear"),
        (lambda: fitted(make_pipeline(MinMaxScaler(clip=True), LogisticRegression())), "clip=True is not linear"),
        (lambda: fitted(SVC(kernel="rbf")), "kernel 'rbf' is not linear"),
        (lambda: SVC(kernel="linear").fit(*data(classes=3)), "compares pairs"),
        (lambda: fitted(Mine()), "Mine is not a class of scikit-learn"),
        (lambda: 3, "int is not a class of scikit-learn"),
        (lambda: fitted(make_pipeline(StandardScaler(), PCA(4))), "PCA cannot be made into a probe"),
    ],
)
def test_what_is_not_one_linear_score_is_refused_with_the_reason(make: Any, says: str) -> None:
    with pytest.raises(ProbeError, match=says):
        from_sklearn(make(), site=SITE)


@pytest.mark.parametrize("change", [{"coef_": np.full((1, D), np.nan)}, {"intercept_": np.array([np.inf])},
                                    {"coef_": np.ones((1, D + 1))}, {"coef_": np.full((1, D), 1e300)},
                                    {"coef_": "text"}, {"intercept_": np.ones(7)}])  # fmt: skip
def test_numbers_that_cannot_be_right_are_refused(change: dict[str, Any]) -> None:
    model = fitted(LogisticRegression())
    for name, value in change.items():
        setattr(model, name, value)
    with pytest.raises(ProbeError):
        from_sklearn(make_pipeline(fitted(StandardScaler()), model), site=SITE)


def test_ids_are_made_of_the_classes_and_each_is_there_once() -> None:
    rows, labels = data(classes=3)
    model = LogisticRegression().fit(rows, np.array(["a b", "a/b", "ä" * 90])[labels])
    ids = [probe.id for probe in from_sklearn(model, site=SITE, name="x")]
    assert len(set(ids)) == 3 and ids[0] == "x-a_b"


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.pickle"])
def test_a_pickled_model_is_refused_with_the_lines_that_export_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ProbeError, match=r"skops\.io\.dump") as caught:
        import_probes(tmp_path / name, site=SITE)
    assert "model.skops" in str(caught.value)
