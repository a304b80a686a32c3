"""Statistics gathered batch by batch are those of the whole array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recordings.made import rows_of, step_of
from support.recordings.real_model import Truth, record, run_model

from actscope.analysis import SiteOptions, measure
from actscope.analysis.drift import Drift
from actscope.analysis.moments import Covariance, Moments
from actscope.analysis.outliers import Massive, outlier_dimensions, robust_scores
from actscope.analysis.spectrum import Spectrum
from actscope.analysis.tokens import depth, genuine
from actscope.errors import SettingsError
from actscope.frames import Frame, RowFlag
from actscope.recording.format.row_labels import LABEL
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder

TINY_BATCHES = SiteOptions(batch_bytes=10_000)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, Recording]:
    truth = run_model(request.param, dtype=torch.bfloat16)
    return truth, Recording.open(record(truth, tmp_path_factory.mktemp("rec") / "run.acts"))


def test_every_statistic_of_real_rows_is_that_of_the_whole_array(ran: tuple[Truth, Recording]) -> None:
    truth, recording = ran
    for site in truth.sites:
        rows = truth.rows(site).double().numpy()
        found = measure(recording, site, TINY_BATCHES)
        assert found is not None and (found.rows, found.width, found.dtype) == (len(rows), 64, "bfloat16")
        m = found.moments
        np.testing.assert_allclose(m.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(m.variance, rows.var(axis=0), rtol=1e-11)
        np.testing.assert_allclose(m.skewness, scipy.stats.skew(rows), rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(m.kurtosis, scipy.stats.kurtosis(rows), rtol=1e-8, atol=1e-9)
        norms = np.linalg.norm(rows, axis=1)
        n = found.norms
        np.testing.assert_allclose(
            [n.mean, n.std, n.min, n.max], [norms.mean(), norms.std(), norms.min(), norms.max()], rtol=1e-5
        )
        np.testing.assert_allclose(
            [n.quantiles[q] for q in (0.05, 0.5, 0.99)], np.quantile(norms, [0.05, 0.5, 0.99]), rtol=1e-6
        )
        values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
        assert found.spectrum is not None and found.spectrum.rows == len(rows)
        np.testing.assert_allclose(found.spectrum.eigenvalues, values, rtol=1e-7, atol=1e-9 * values[0])
        shares = values / values.sum()
        assert found.spectrum.effective_rank == pytest.approx(np.exp(scipy.stats.entropy(np.maximum(shares, 0))))
        assert found.spectrum.participation_ratio == pytest.approx(values.sum() ** 2 / (values**2).sum())


def test_drift_is_measured_by_bins_of_positions(ran: tuple[Truth, Recording]) -> None:
    truth, recording = ran
    site, position = truth.sites[1], truth.meta("position")
    rows = truth.rows(site).double().numpy()
    found = measure(recording, site, TINY_BATCHES)
    assert found is not None
    assert [(b.first, b.last) for b in found.drift[:5]] == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15)]
    mean = rows.mean(axis=0)
    for part in found.drift:
        mine = rows[(position >= part.first) & (position <= part.last)]
        norms = np.linalg.norm(mine, axis=1)
        assert part.rows == len(mine)
        assert part.mean_norm == pytest.approx(norms.mean())
        assert part.mean_cosine == pytest.approx((mine @ mean / norms / np.linalg.norm(mean)).mean())


def test_bytes_per_token_add_up_to_what_is_stored(ran: tuple[Truth, Recording]) -> None:
    _, recording = ran
    for site in recording.sites:
        found = measure(recording, site)
        assert found is not None
        assert found.stored_per_token * recording.n_rows == pytest.approx(recording[site].sizes().stored)
        assert (found.fp32_per_token, found.source_per_token) == (256, 128)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 1000), st.floats(-1e6, 1e6))
def test_moments_and_covariance_merge_whatever_the_batches_and_the_offset(
    sizes: list[int], seed: int, offset: float
) -> None:
    """An offset a million times the spread costs digits of the input, not of the merge."""
    rng = np.random.default_rng(seed)
    parts = [rng.gamma(2.0, size=(n, 5)) + offset for n in sizes]
    whole = np.concatenate(parts)
    moments, covariance = Moments(5), Covariance(5)
    for part in parts:
        moments.add(part)
        covariance.add(part)
    assert moments.n == covariance.n == len(whole)
    if len(whole) < 3:
        return
    np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-12)
    off = whole - whole.mean(axis=0)
    for found, power in ((moments.m2, 2), (moments.m3, 3), (moments.m4, 4)):
        scale = np.abs(off**power).sum(axis=0)
        np.testing.assert_allclose(found / scale, (off**power).sum(axis=0) / scale, atol=1e-7)
    np.testing.assert_allclose(covariance.matrix, off.T @ off / len(whole), rtol=1e-6, atol=1e-8)


def test_a_known_rank_is_found() -> None:
    assert Spectrum.of(np.eye(16), 100).effective_rank == pytest.approx(16)
    assert Spectrum.of(np.eye(16), 100).participation_ratio == pytest.approx(16)
    flat = Spectrum.of(np.diag([2.0] * 5 + [0.0] * 11), 100)
    assert flat.effective_rank == pytest.approx(5)
    assert (flat.n_for(0.9), flat.n_for(0.99)) == (5, 5)
    nothing = Spectrum.of(np.zeros((4, 4)), 1)
    assert (nothing.effective_rank, nothing.participation_ratio, nothing.n_for(0.9)) == (0, 0, 0)


def test_planted_outlier_dimensions_are_found_and_plain_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4000, 256))
    rows[:, 7] += 30
    rows[:, 100] *= 40
    rows[:, 3] = 0
    moments = Moments(256)
    moments.add(rows)
    found = {o.dimension: o for o in outlier_dimensions(moments)}
    assert found.keys() == {7, 100}
    assert abs(found[7].mean_sigmas) > 6 > abs(found[7].std_sigmas)
    assert found[100].std_sigmas > 6


def test_several_outliers_do_not_hide_each_other() -> None:
    """With an ordinary standard deviation 20 equal outliers of 256 would stand at 3.4 sigmas each."""
    values = np.concatenate([np.random.default_rng(0).standard_normal(236), np.full(20, 50.0)])
    assert (np.abs((values - values.mean()) / values.std()) < 6).all()
    assert (np.abs(robust_scores(values)) > 6).sum() == 20
    assert robust_scores(np.ones(5)).tolist() == [0] * 5


def test_massive_activations_follow_the_rule_of_sun_et_al() -> None:
    rows = np.full((4, 8), 0.1)
    rows[0, 2] = 500  # above 100, and 5000 x the median
    rows[1, 2] = 99  # not above 100
    rows[2] = 1
    rows[2, 5] = 900  # above 100, 900 x the median only
    massive = Massive()
    massive.add(rows[:2], np.array([0, 1]))
    massive.add(rows[2:], np.array([2, 3]))
    assert (massive.count, massive.rows, massive.by_dimension, massive.positions) == (1, 1, {2: 1}, {0: 1})
    assert massive.largest == 900


def test_rows_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    """Rejected drafts, rows after the end, all but the last computation of a token; NaN and infinity are counted apart."""
    steps = [step_of(1, [("r", 0, 6)]), step_of(2, [("r", 6, 2)]), step_of(3, [("r", 4, 2)])]
    steps[1].meta["flags"] |= np.uint32(RowFlag.REJECTED)
    rows = [rows_of(step, "embed") for step in steps]
    rows[2] += 1
    rows[0][0, 3] = np.inf
    rows[0][1, 0] = np.nan
    with Recorder.create(tmp_path / "rec", RecordingSpec(("embed",), codec="none")) as recorder:
        for step, part in zip(steps, rows, strict=True):
            recorder.write(step, [Frame("embed", part.copy())])
    found = measure(Recording.open(tmp_path / "rec"), "embed")
    assert found is not None
    assert (found.rows, found.left_out, found.non_finite) == (4, 4, 2)
    np.testing.assert_allclose(found.moments.mean, np.concatenate([rows[0][2:4], rows[2]]).mean(axis=0), rtol=1e-6)


def test_a_spectrum_of_drawn_rows_says_how_many_they_were(ran: tuple[Truth, Recording]) -> None:
    _, recording = ran
    some = measure(recording, recording.sites[0], SiteOptions(spectrum_rows=100))
    assert some is not None and some.spectrum is not None
    assert 60 < some.spectrum.rows < 150
    for options in (SiteOptions(spectrum_rows=0), SiteOptions(spectrum_width=32)):
        none = measure(recording, recording.sites[0], options)
        assert none is not None and none.spectrum is None
    with pytest.raises(SettingsError, match="expected batch_bytes >= 1"):
        SiteOptions(batch_bytes=0)


def test_genuine_keeps_the_last_computation_of_each_token() -> None:
    labels = np.zeros(5, LABEL)
    labels["position"] = [0, 1, 1, 2, 0]
    labels["request"] = [0, 0, 0, 0, 1]
    labels["flags"] = [0, 0, RowFlag.RECOMPUTED, RowFlag.AFTER_EOS, 0]
    assert genuine(labels).tolist() == [True, False, True, False, True]


def test_sites_are_ordered_by_depth() -> None:
    sites = ["final_norm", "layers.10.resid_pre", "layers.2.resid_post", "layers.2.attn_out", "embed", "unheard.of"]
    assert sorted(sites, key=depth) == [
        "embed", "layers.2.attn_out", "layers.2.resid_post", "layers.10.resid_pre", "final_norm", "unheard.of",
    ]  # fmt: skip


def test_a_row_of_zeros_has_no_direction_and_breaks_nothing() -> None:
    drift = Drift(3)
    drift.add(np.zeros((2, 3)), np.zeros(2), np.array([0, 5]))
    assert [(b.rows, b.mean_norm, b.mean_cosine) for b in drift.bins(np.ones(3))] == [(1, 0, 0), (1, 0, 0)]
