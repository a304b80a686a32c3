"""The whole analysis: what is written, and that it can be read."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from support.recordings.real_model import record, run_model

from actscope.analysis import AnalysisOptions, SiteOptions, analyze
from actscope.errors import MissingExtra, RecordingError, SettingsError
from actscope.probes import Probe, ProbeInfo, save_probe
from actscope.recording.reading.recording import Recording


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording.open(record(run_model(max_tokens=60), tmp_path_factory.mktemp("rec") / "run.acts"))


@pytest.fixture(scope="module")
def probes(real: Recording, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Probes along the rows' own main directions, so that they fire on about half the tokens."""
    folder = tmp_path_factory.mktemp("probes")
    for site in (real.sites[0], real.sites[2]):
        rows = real[site][:]
        mean = rows.mean(axis=0)
        for number, vector in enumerate(np.linalg.svd(rows - mean)[2][:3]):
            name = f"{site.split('.')[1]}-pc{number}"
            bias = -float(mean @ vector) - 0.8 * float((rows @ vector).std())
            save_probe(
                Probe(ProbeInfo(id=name, site=site, bias=bias), vector.astype(np.float32)),
                folder / f"{name}.safetensors",
            )
    return str(folder)


def test_an_analysis_writes_what_it_found(real: Recording, probes: str, tmp_path: Path) -> None:
    report = analyze(real, AnalysisOptions(features=(probes,), graph=True), tmp_path / "out")
    assert all(path.is_file() and path.stat().st_size for path in report.files)
    said = json.loads((tmp_path / "out/report.json").read_text())
    assert said == json.loads(json.dumps(report.as_dict()))
    assert [site["site"] for site in said["sites"]] == list(real.sites)
    assert said["graph"]["note"] and said["graph"]["tested"] > 0
    assert said["bytes_per_token"] == pytest.approx(sum(real[site].sizes().stored for site in real.sites) / real.n_rows)
    for stats in report.sites:
        with np.load(tmp_path / "out/dimensions" / f"{stats.site}.npz", allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays["mean"], stats.moments.mean)
            assert stats.spectrum is not None
            np.testing.assert_array_equal(arrays["eigenvalues"], stats.spectrum.eigenvalues)
    pictures = {path.name for path in report.files if path.suffix == ".png"}
    names = [
        "norms",
        "drift",
        "outliers",
        "bytes_per_token",
        "spectrum",
        *(["graph"] if report.graph and report.graph.edges else []),
    ]
    assert pictures == {f"{name}{theme}.png" for name in names for theme in ("", ".dark")}


def test_pictures_are_drawn_for_light_and_for_dark_pages(real: Recording, probes: str, tmp_path: Path) -> None:
    """Their corners are the page's colour, and there is ink that stands out from it."""
    analyze(real, AnalysisOptions(), tmp_path / "out")
    for name in ("norms", "drift", "outliers", "bytes_per_token", "spectrum"):
        for theme, dark in (("", False), (".dark", True)):
            picture = matplotlib.image.imread(tmp_path / "out" / f"{name}{theme}.png")[..., :3]
            assert min(picture.shape[:2]) > 300
            assert (picture[2, 2].mean() < 0.2) == dark
            away = np.abs(picture - picture[2, 2]).max(axis=2)
            assert 0.005 < (away > 0.5).mean() < 0.6


def test_without_a_folder_nothing_is_written_or_drawn(
    real: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = analyze(real, AnalysisOptions(sites=real.sites[1:2]))
    assert report.files == [] and [stats.site for stats in report.sites] == [real.sites[1]]
    assert list(tmp_path.iterdir()) == []


def test_one_site_without_spectrum_can_be_drawn_and_drawing_can_be_left_out(real: Recording, tmp_path: Path) -> None:
    options = AnalysisOptions(sites=real.sites[:1], site=SiteOptions(spectrum_rows=0))
    drawn = analyze(real, options, tmp_path / "drawn")
    assert "spectrum.png" not in {path.name for path in drawn.files} and (tmp_path / "drawn/norms.png").is_file()
    plain = analyze(real, AnalysisOptions(plots=False), tmp_path / "plain")
    assert not [path for path in plain.files if path.suffix == ".png"]


def test_a_graph_needs_features() -> None:
    with pytest.raises(SettingsError, match="a graph is between features"):
        AnalysisOptions(graph=True)


@pytest.mark.parametrize("package", ["matplotlib", "scipy", "networkx"])
def test_a_missing_library_is_named_with_its_install_line(
    real: Recording, probes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    graph = package != "matplotlib"
    with pytest.raises(MissingExtra, match=rf"needs {package}.*actscope\[analyze\]"):
        analyze(real, AnalysisOptions(features=(probes,), graph=graph, plots=not graph), tmp_path / "out")


def test_a_report_appears_whole_or_not_at_all(real: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, or Ctrl-C, in the middle leaves nothing, and an earlier report stays as it was."""
    out = tmp_path / "out"
    options = AnalysisOptions(plots=False)
    analyze(real, options, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in before)
    savez = np.savez

    def fail(error: BaseException) -> Any:
        def half(*arguments: Any, **arrays: Any) -> None:
            savez(*arguments, **arrays)
            raise error

        return half

    for error, raised in (
        (OSError(28, "No space left on device"), RecordingError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        monkeypatch.setattr("actscope.analysis.report.np.savez", fail(error))
        for to in (out, tmp_path / "new"):
            with pytest.raises(raised) as ended:
                analyze(real, options, to)
            assert raised is KeyboardInterrupt or f"{to}: the report cannot be written (No space left" in str(
                ended.value
            )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    report = analyze(real, AnalysisOptions(plots=False, sites=(real.sites[0],)), out)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(report.files)


def test_a_folder_with_other_things_is_not_replaced_by_a_report(real: Recording, tmp_path: Path) -> None:
    """It is refused before anything is measured, with a word on why."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    with pytest.raises(RecordingError, match="neither empty nor an earlier report"):
        analyze(real, AnalysisOptions(plots=False), tmp_path / "notes")
    (tmp_path / "notes/report.json").write_text("{}")
    with pytest.raises(RecordingError, match=r"holds mine\.txt, which is of no report, and would be lost"):
        analyze(real, AnalysisOptions(plots=False), tmp_path / "notes")
    with pytest.raises(RecordingError, match="is no folder"):
        analyze(real, AnalysisOptions(plots=False), tmp_path / "notes/mine.txt")
    assert (tmp_path / "notes/mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert analyze(real, AnalysisOptions(plots=False), tmp_path / "empty").files[-1] == tmp_path / "empty/report.json"
