"""The promises, by simulation: known score distributions, so that the false-positive rate of a cut is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom, norm

from refusal_edge.calibrate import thresholds
from refusal_edge.errors import InvalidRequestError

DRAWS = 2_000
ALPHA, DELTA = 0.05, 0.10
N = 200
SEED = 20250101
ATOMS = np.linspace(-4.0, 4.0, 9)
MASSES = np.array([0.22, 0.2, 0.16, 0.14, 0.1, 0.08, 0.05, 0.03, 0.02])


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def saturated(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """60 % at log-odds -30, 4 % at +30 (scores 0 and 1 to many digits), the rest between."""
    u = rng.uniform(size=shape)
    return np.where(u < 0.6, -30.0, np.where(u > 0.96, 30.0, 10 * rng.normal(size=shape)))


def tied(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice(ATOMS, size=shape, p=MASSES)


# distribution -> (draw, P(score > cut))
DISTRIBUTIONS: dict[str, tuple[Callable[..., np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "smooth": (smooth, norm.sf),
    "saturated": (saturated, lambda c: 0.6 * (c < -30) + 0.04 * (c < 30) + 0.36 * norm.sf(c / 10)),
    "tied": (tied, lambda c: (MASSES * (np.asarray(c)[..., None] < ATOMS)).sum(axis=-1)),
}


def realised(method: str, distribution: str) -> np.ndarray:
    """(DRAWS,) false-positive rates of the cuts that `method` chooses on as many calibration sets."""
    draw, false_positive_rate = DISTRIBUTIONS[distribution]
    samples = draw(np.random.default_rng(SEED), (DRAWS, N))
    choose = {
        "naive": lambda s: np.quantile(s, 1 - ALPHA, method="higher"),
        **{name: lambda s, cut=cut: cut(s, ALPHA, DELTA) for name, cut in thresholds.CERTIFIED.items()},
    }[method]
    return false_positive_rate(np.array([choose(sample) for sample in samples]))


def most_violations() -> int:
    """Violations that a method with P(violation) = DELTA exactly exceeds with probability 1e-4."""
    return int(binom.ppf(1 - 1e-4, DRAWS, DELTA))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", ["np", "ltt"])
def test_false_positives_stay_under_alpha_with_confidence(method: str, distribution: str) -> None:
    violations = int((realised(method, distribution) > ALPHA + 1e-12).sum())
    assert violations <= most_violations()


def test_np_uses_its_delta() -> None:
    """On a smooth distribution the promise is nearly tight: a needlessly cautious rank would pass the test above."""
    exact = binom.cdf(thresholds.allowed_false_positives(N, ALPHA, DELTA), N, ALPHA)
    share = (realised("np", "smooth") > ALPHA).mean()
    assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / DRAWS)
    assert exact > DELTA / 2


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_crc_keeps_the_mean_under_alpha(distribution: str) -> None:
    rates = realised("crc", distribution)
    assert rates.mean() <= ALPHA + 4 * rates.std() / math.sqrt(DRAWS)


def test_the_empirical_quantile_breaks_the_promise() -> None:
    assert (realised("naive", "smooth") > ALPHA).sum() > 3 * most_violations()


@pytest.mark.parametrize("alpha", ["0.01", "0.05", "0.10"])
@pytest.mark.parametrize("n", [59, 82, 148, 379, 1319])
def test_np_rank_equals_the_order_statistic_by_hand(n: int, alpha: str) -> None:
    """Exact rational arithmetic: smallest k with sum_{j >= k} C(n, j) (1 - alpha)^j alpha^(n - j) <= delta."""
    a, delta = Fraction(alpha), Fraction("0.05")
    tail, k = Fraction(0), n + 1
    while k > 1:
        more = tail + math.comb(n, k - 1) * (1 - a) ** (k - 1) * a ** (n - k + 1)
        if more > delta:
            break
        tail, k = more, k - 1
    expected = None if k == n + 1 else k
    assert thresholds.order_statistic_rank(n, float(a), 0.05) == expected
    scores = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    if expected is None:
        with pytest.raises(InvalidRequestError, match=rf"{n} benign rows: needs at least 299"):
            thresholds.np_cut(scores, float(a), 0.05)
    else:
        assert thresholds.np_cut(scores, float(a), 0.05) == expected


def test_known_ranks() -> None:
    """n = 59 is the smallest that allows anything at 5 % / 5 %: the largest score itself."""
    assert thresholds.order_statistic_rank(58, 0.05, 0.05) is None
    assert thresholds.order_statistic_rank(59, 0.05, 0.05) == 59
    assert thresholds.order_statistic_rank(148, 0.05, 0.05) == 146


@pytest.mark.parametrize(
    ("method", "alpha", "delta", "needed"),
    [
        ("np", 0.05, 0.05, 59),
        ("ltt", 0.05, 0.05, 59),
        ("np", 0.01, 0.05, 299),
        ("crc", 0.05, 0.0, 19),
        ("crc", 0.1, 0.0, 9),
    ],
)
def test_one_row_fewer_than_needed_is_refused(method: str, alpha: float, delta: float, needed: int) -> None:
    cut = thresholds.CERTIFIED[method]
    assert thresholds.rows_needed(method, alpha, delta) == needed
    cut(np.zeros(needed), alpha, delta)
    with pytest.raises(InvalidRequestError, match=f"needs at least {needed}"):
        cut(np.zeros(needed - 1), alpha, delta)


def test_ltt_is_np_rounded_up_to_its_grid() -> None:
    rng = np.random.default_rng(SEED)
    for n in (59, 120, 1000):
        scores = rng.normal(scale=4, size=n)
        np_cut, ltt_cut = (thresholds.CERTIFIED[m](scores, ALPHA, 0.05) for m in ("np", "ltt"))
        above = thresholds.LTT_GRID[np_cut <= thresholds.LTT_GRID]
        assert ltt_cut == above.min()


def test_ltt_refuses_nothing_where_too_many_scores_lie_above_its_grid() -> None:
    assert thresholds.ltt_cut(np.full(100, 40.0), ALPHA, DELTA) == np.inf


def test_cuts_take_infinities() -> None:
    scores = np.concatenate([np.full(90, -np.inf), np.full(10, np.inf)])
    assert thresholds.np_cut(scores, 0.2, 0.05) == -np.inf
    assert thresholds.np_cut(scores, 0.05, 0.05) == np.inf
