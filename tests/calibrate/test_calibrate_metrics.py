from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from refusal_edge.calibrate import metrics, scaling


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 71), (10, 10), (500, 1000)])
def test_clopper_pearson_equals_the_beta_quantiles(k: int, n: int) -> None:
    rate = metrics.rate(np.arange(n) < k)
    low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-9)


def test_no_rows_say_so() -> None:
    rate = metrics.rate([])
    assert (rate.low, rate.high, str(rate)) == (0.0, 1.0, "no rows")
    assert np.isnan(metrics.auroc(np.ones(3), np.ones(3, bool)))


def test_auroc_equals_counting_pairs() -> None:
    rng = np.random.default_rng(1)
    scores, positive = np.round(rng.normal(size=80), 1), rng.uniform(size=80) < 0.4
    pairs = scores[positive][:, None] - scores[~positive][None, :]
    assert metrics.auroc(scores, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    low, high = metrics.auroc_interval(scores, positive, seed=3)
    assert low < metrics.auroc(scores, positive) < high
    assert (low, high) == metrics.auroc_interval(scores, positive, seed=3)


def test_equal_mass_bins_keep_ties_together() -> None:
    p = np.repeat([0.0, 0.2, 0.9], [50, 30, 20]).astype(float)
    y = np.concatenate([np.zeros(50), np.arange(30) < 6, np.arange(20) < 16]).astype(bool)
    mean, share, sizes = metrics.reliability(p, y, bins=10)
    assert sizes.tolist() == [50, 30, 20]
    assert share == pytest.approx([0, 0.2, 0.8])
    assert metrics.ece(p, y) == pytest.approx(0.2 * 0.1)
    assert mean == pytest.approx([0, 0.2, 0.9])


def test_a_calibrated_forecast_has_small_ece_and_ten_equal_bins() -> None:
    rng = np.random.default_rng(2)
    p = rng.uniform(size=20_000)
    y = rng.uniform(size=p.size) < p
    assert metrics.reliability(p, y)[2].tolist() == [2000] * 10
    assert metrics.ece(p, y) < 0.015
    assert metrics.brier(p, y) == pytest.approx(1 / 6, abs=0.01)
    assert metrics.nll(p, y) == pytest.approx(0.5, abs=0.01)


def test_temperature_is_found_again() -> None:
    rng = np.random.default_rng(3)
    true = rng.normal(scale=2, size=(4000, 4))
    target = (true + rng.gumbel(size=true.shape)).argmax(axis=1)
    assert scaling.fit_temperature(true * 2.5, target) == pytest.approx(2.5, rel=0.06)


def test_bias_is_found_again_and_stays_finite_without_positives() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(scale=2, size=4000)
    outcome = rng.uniform(size=x.size) < 1 / (1 + np.exp(-(x - 1.2)))
    assert scaling.fit_bias(x, outcome) == pytest.approx(-1.2, abs=0.15)
    assert -30 < scaling.fit_bias(x, np.zeros(x.size, bool)) < -5
