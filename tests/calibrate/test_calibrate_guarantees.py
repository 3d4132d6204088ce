"""The promises, by simulation: known score distributions, so that the false-positive rate of a cut is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import made_scores
import numpy as np
import pytest
from made_scores import POLICY, SLUGS
from scipy.stats import binom, norm

from refusal_edge.calibrate import (
    Certificate,
    PolicyFile,
    ScoreTable,
    Target,
    calibrate,
    odds,
    read_scores,
    thresholds,
)
from refusal_edge.calibrate.certificate import Promise, promises
from refusal_edge.errors import InvalidRequestError
from refusal_edge.policy import Policy

DRAWS = 2_000
SIZES = [(200, 0.05, 0.10), (60, 0.05, 0.05), (120, 0.10, 0.05), (45, 0.2, 0.2)]  # n, alpha, delta
ALPHA, DELTA = 0.05, 0.10
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


def naive_cut(scores: np.ndarray, alpha: float, delta: float = 0.0) -> float:
    """What most people do: the empirical quantile."""
    return float(np.quantile(scores, 1 - alpha, method="higher"))


def realised(cut: Callable[..., float], distribution: str, size: tuple[int, float, float]) -> np.ndarray:
    """(DRAWS,) false-positive rates of the cuts that are chosen on as many calibration sets."""
    n, alpha, delta = size
    draw, false_positive_rate = DISTRIBUTIONS[distribution]
    samples = draw(np.random.default_rng(SEED), (DRAWS, n))
    return false_positive_rate(np.array([cut(sample, alpha, delta) for sample in samples]))


def most_violations(draws: int, delta: float) -> int:
    """Violations that a method with P(violation) = delta exactly exceeds with probability 1e-4."""
    return int(binom.ppf(1 - 1e-4, draws, delta))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_false_positives_stay_under_alpha_with_confidence(distribution: str, size: tuple[int, float, float]) -> None:
    """And the empirical quantile's do not, on the same draws, so that the test can fail."""
    _, alpha, delta = size
    allowed = most_violations(DRAWS, delta)
    for method in ("np", "ltt"):
        rates = realised(thresholds.CERTIFIED[method], distribution, size)
        assert (rates > alpha + 1e-12).sum() <= allowed, method
    if distribution == "smooth":
        assert (realised(naive_cut, distribution, size) > alpha).sum() > 1.5 * allowed


def test_np_uses_its_delta() -> None:
    """On a smooth distribution the promise is nearly tight: a needlessly cautious rank would pass the test above."""
    for n, alpha, delta in SIZES:
        exact = binom.cdf(thresholds.allowed_false_positives(n, alpha, delta), n, alpha)
        share = (realised(thresholds.np_cut, "smooth", (n, alpha, delta)) > alpha).mean()
        assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / DRAWS)
        assert exact > delta / 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_crc_keeps_the_mean_under_alpha(distribution: str, size: tuple[int, float, float]) -> None:
    """Nearly tight on a smooth distribution: cutting one order statistic lower breaks it there."""
    n, alpha, _ = size
    rates = realised(thresholds.crc_cut, distribution, size)
    assert rates.mean() <= alpha + 4 * rates.std() / math.sqrt(DRAWS)
    if distribution == "smooth":
        lower = realised(lambda s, a, d: thresholds.crc_cut(s, a + 1 / (n + 1)), distribution, size)
        assert lower.mean() > alpha + 4 * lower.std() / math.sqrt(DRAWS)


# ---- calibrate() itself, end to end: splits of alpha and delta, shared thresholds, rounding

END_TO_END_DRAWS = 150
POPULATION = 1_500


def population(shape: str, folder: Path) -> ScoreTable:
    """Benign rows, drawn from with replacement: the false-positive rates of a policy are exact shares of these."""
    rng = np.random.default_rng(SEED)
    logits = rng.normal(scale=1.5, size=(POPULATION, made_scores.N_VOCAB))
    logits[:, 9] += 2
    category = rng.integers(0, len(SLUGS), POPULATION)
    logits[np.arange(POPULATION), 5 + category] += 1.5  # near a category is higher on its score
    if shape == "saturated":  # scores of 0 and 1 to more digits than a threshold has
        logits[np.arange(POPULATION), rng.choice([5, 6, 7, 9], POPULATION, p=[0.02, 0.02, 0.02, 0.94])] += 40
        few = rng.uniform(size=POPULATION) < 0.3
        logits[few] = rng.normal(scale=4, size=(few.sum(), made_scores.N_VOCAB))
    logits[:, 5:10] += 12  # control mass near 1
    if shape == "tied":
        logits = np.round(logits / 3) * 3
    everything, benign = logits.astype(np.float32), np.zeros(POPULATION, bool)
    return read_scores(made_scores.write_scores(folder / f"{shape}.jsonl", everything, benign, category))


def broken(table: ScoreTable, policy: Policy, promised: list[Promise]) -> bool:
    """Whether any promise is: against the rule as the design states it, on every row of the population."""
    q = odds.scores(table, policy)[:, :-1]
    limits = np.array([2.0 if t == "off" else t for t in policy.thresholds.values()])
    passed = q >= limits
    for promise in promised:
        columns = [SLUGS.index(slug) for slug in promise.categories]
        rows = np.ones(len(table), bool) if promise.rows is None else table.category == SLUGS.index(promise.rows)
        if passed[np.ix_(rows, columns)].any(axis=1).mean() > promise.alpha + 1e-12:
            return True
    return False


@pytest.mark.parametrize("shape", ["smooth", "saturated", "tied"])
@pytest.mark.parametrize(
    ("scope", "n", "alpha", "delta"),
    [
        ("pooled", 60, 0.05, 0.05),
        ("pooled", 90, 0.1, 0.1),
        ("union", 80, 0.15, 0.2),
        ("category", 110, 0.1, 0.2),
    ],
)
def test_calibrate_keeps_all_its_promises_together(
    tmp_path: Path, shape: str, scope: str, n: int, alpha: float, delta: float
) -> None:
    """All promises of one calibration hold at once, but for a share delta of calibrations; a naive one breaks them."""
    table = population(shape, tmp_path)
    rng = np.random.default_rng(SEED)
    violations = naive_violations = 0
    for _ in range(END_TO_END_DRAWS):
        sample = table.select(rng.integers(0, POPULATION, n))
        result = calibrate(sample, POLICY, Target(scope=scope, alpha=alpha, delta=delta))
        file = PolicyFile.of(result, table.header, "2025-01-01")
        promised = promises(file.calibration, file.certificates, file.policy)
        assert promised[0].at_all is (result.scope != "category")
        violations += broken(table, result.policy, promised)
        naive = {c.categories: naive_cut(statistic(sample, c), c.alpha) for c in result.certificates}
        thresholds_of = {slug: odds.threshold_above(cut) for slugs, cut in naive.items() for slug in slugs}
        naive_violations += broken(table, POLICY.replace(**thresholds_of), promised)
    allowed = most_violations(END_TO_END_DRAWS, delta)
    assert violations <= allowed
    if shape == "smooth":
        assert naive_violations > 1.5 * allowed


def statistic(sample: ScoreTable, certificate: Certificate) -> np.ndarray:
    columns = [SLUGS.index(slug) for slug in certificate.categories]
    rows = slice(None) if certificate.rows is None else sample.category == SLUGS.index(certificate.rows)
    return odds.log_odds(sample, POLICY)[rows][:, columns].max(axis=1)


def test_calibrate_with_crc_keeps_the_mean_of_being_refused_at_all(tmp_path: Path) -> None:
    table, rng = population("tied", tmp_path), np.random.default_rng(SEED)
    rates = []
    for _ in range(END_TO_END_DRAWS):
        policy = calibrate(table.select(rng.integers(0, POPULATION, 60)), POLICY, Target("crc", alpha=0.1)).policy
        rates.append(((odds.scores(table, policy)[:, :-1]).max(axis=1) >= policy.thresholds["safety"]).mean())
    assert np.mean(rates) <= 0.1 + 4 * np.std(rates) / math.sqrt(END_TO_END_DRAWS)


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


@pytest.mark.parametrize("alpha", [0.5, 0.3, 0.2, 0.1, 0.05, 0.01])
def test_as_many_rows_as_are_needed_are_enough(alpha: float) -> None:
    """Also where (1 - alpha)^n is delta to the last bit or beside it: 3 rows for .3 and .343."""
    assert thresholds.rows_needed("np", 0.3, 0.343) == 3
    for n in (1, 2, 3, 7, 20, 59):
        level = (1 - alpha) ** n
        for delta in (level, float(f"{level:.9g}"), np.nextafter(level, 0), np.nextafter(level, 1)):
            needed = thresholds.rows_needed("np", alpha, delta)
            assert needed in (n, n + 1)
            assert thresholds.np_cut(np.arange(float(needed)), alpha, delta) == needed - 1
            assert needed == 1 or thresholds.order_statistic_rank(needed - 1, alpha, delta) is None


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
