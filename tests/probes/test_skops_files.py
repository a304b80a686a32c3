"""Models of scikit-learn in .skops files: what skops trusts is read, and nothing else is built."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from actscope.errors import ProbeError
from actscope.probes import from_sklearn, import_probes

skops_io = pytest.importorskip("skops.io")

SITE = "layers.3.resid_post"


def fitted(estimator: Any, classes: int = 2) -> Any:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(200, 12))
    return make_pipeline(StandardScaler(), estimator).fit(rows, rows[:, :classes].argmax(axis=1))


@pytest.mark.parametrize(
    "estimator",
    [LogisticRegression(), LinearSVC(), SGDClassifier(random_state=0), RidgeClassifierCV(), LinearDiscriminantAnalysis(),
     OneVsRestClassifier(LogisticRegression())],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_a_skops_file_gives_the_probes_of_the_live_model(estimator: Any, tmp_path: Path) -> None:
    model, path = fitted(estimator), tmp_path / "mood.skops"
    skops_io.dump(model, path)
    live, read = from_sklearn(model, site=SITE, name="mood"), import_probes(path, site=SITE)
    assert [probe.info for probe in read] == [probe.info for probe in live]
    for one, other in zip(read, live, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)


def test_a_skops_file_needs_a_site(tmp_path: Path) -> None:
    skops_io.dump(fitted(LogisticRegression()), tmp_path / "mood.skops")
    with pytest.raises(ProbeError, match="give --site"):
        import_probes(tmp_path / "mood.skops")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("something was built",))


def changed(path: Path, change: Any) -> Path:
    """The file with another schema."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files["schema.json"])
    files["schema.json"] = change(schema) if callable(change) else json.dumps(change).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def renamed(module: str, name: str) -> Any:
    return lambda schema: json.dumps(schema | {"__module__": module, "__class__": name}).encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (renamed("os", "system"), r"os\.system"),
        (renamed("builtins", "eval"), "eval"),
        (renamed("sklearn.utils._unknown", "Thing"), "Thing|not known as safe|can load"),
        (lambda schema: b"[" * 200000, "nested too deeply"),
        (lambda schema: b"{", "not a file of skops"),
        (lambda schema: json.dumps({"a": [{}] * 300000}).encode(), "more than 200000 nodes"),
    ],
)
def test_types_that_a_linear_model_has_not_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.skops"
    skops_io.dump(fitted(LogisticRegression()), path)
    with pytest.raises(ProbeError, match=says):
        import_probes(changed(path, change), site=SITE)


def test_functions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.skops"
    skops_io.dump(make_pipeline(FunctionTransformer(np.exp), LogisticRegression()), path)
    with pytest.raises(ProbeError, match=r"FunctionNode|not known|folded"):
        import_probes(path, site=SITE)


def test_a_pickle_under_another_name_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.skops").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ProbeError, match="not a file of skops"):
        import_probes(tmp_path / "x.skops", site=SITE)
    skops_io.dump(fitted(LogisticRegression()), tmp_path / "y.skops")
    raw = (tmp_path / "y.skops").read_bytes()
    for size in range(0, len(raw), 211):
        (tmp_path / "x.skops").write_bytes(raw[:size])
        with pytest.raises(ProbeError):
            import_probes(tmp_path / "x.skops", site=SITE)


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.skops", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * (17 << 20))
    with pytest.raises(ProbeError, match="unpacks to more than"):
        import_probes(tmp_path / "x.skops", site=SITE)
