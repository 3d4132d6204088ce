"""Rates with exact intervals, ranking and calibration quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate.extra import extra

_BOOTSTRAP_BUDGET: Final = 50_000_000  # rows drawn in all

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rate:
    """k of n, with its two-sided Clopper-Pearson interval [low, high]. NaN value where n = 0."""

    k: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.k / self.n if self.n else float("nan")

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]" if self.n else "no rows"

    def to_dict(self) -> dict[str, Any]:
        return {"k": self.k, "n": self.n, "rate": self.value if self.n else None, "low": self.low, "high": self.high}


def rate(hits: npt.ArrayLike, confidence: float = 0.95) -> Rate:
    """Share of true values in `hits` (n,), with the exact interval of Clopper and Pearson, Biometrika 26, 1934
    (scipy).
    """
    array = np.asarray(hits, dtype=bool)
    k, n = int(array.sum()), int(array.size)
    if n == 0:
        return Rate(0, 0, 0.0, 1.0)
    interval = extra("scipy.stats").binomtest(k, n).proportion_ci(confidence, method="exact")
    return Rate(k, n, float(interval.low), float(interval.high))


def f1(refused: Labels, wanted: Labels) -> float:
    """2 TP / (2 TP + FP + FN) of refusing (van Rijsbergen 1979); 0 where nothing is refused or should be."""
    total = int(refused.sum()) + int(wanted.sum())
    return 2 * int((refused & wanted).sum()) / total if total else 0.0


def auroc(scores: Array, positive: Labels) -> float:
    """P(positive scores above negative) + P(tie) / 2: Mann and Whitney, 1947. NaN without rows of both labels."""
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    ranks = extra("scipy.stats").rankdata(scores)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def auroc_interval(
    scores: Array, positive: Labels, *, seed: int, draws: int = 1000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval, resampling within each label (Efron and Tibshirani 1993, chapter 13)."""
    above, below = scores[positive], scores[~positive]
    if not len(above) or not len(below):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = min(draws, max(100, _BOOTSTRAP_BUDGET // len(scores)))
    labels = np.append(np.ones(len(above), bool), np.zeros(len(below), bool))
    values = [
        auroc(np.append(rng.choice(above, len(above)), rng.choice(below, len(below))), labels) for _ in range(draws)
    ]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def nll(probability: Array, outcome: Labels) -> float:
    """Mean negative log-likelihood in nats of binary outcomes."""
    p = np.clip(np.where(outcome, probability, 1 - probability), 1e-300, 1)
    return float(-np.log(p).mean())


def brier(probability: Array, outcome: Labels) -> float:
    """Mean squared error of the probability (Brier 1950)."""
    return float(np.mean((probability - outcome) ** 2))


def reliability(probability: Array, outcome: Labels, bins: int = 10) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Mean probability, observed share and rows of equal-mass bins, ties kept together (fewer bins where ties are
    large).
    """
    order = np.argsort(probability, kind="stable")
    p, y = probability[order], outcome[order].astype(float)
    edges = np.searchsorted(p, p[np.arange(1, bins) * len(p) // bins], side="left") if len(p) else np.array([], int)
    starts = np.unique(np.append(0, edges))
    sizes = np.diff(np.append(starts, len(p)))
    return np.add.reduceat(p, starts) / sizes, np.add.reduceat(y, starts) / sizes, sizes


def ece(probability: Array, outcome: Labels, bins: int = 10) -> float:
    """Expected calibration error over equal-mass bins (Nixon et al., "Measuring Calibration in Deep Learning",
    2019).
    """
    mean, share, sizes = reliability(probability, outcome, bins)
    return float(np.average(np.abs(mean - share), weights=sizes))
