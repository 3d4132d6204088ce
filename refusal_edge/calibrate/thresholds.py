"""From the scores of benign rows to a cut with a guarantee: refuse iff score > cut.

"Benign" rows are those that should be answered; refusing one is a false positive. Every function takes the benign
scores alone, in any unit (ties, saturation and infinities included), and picks one of their order statistics or a grid
point.

np and ltt promise P(false-positive rate > alpha) <= delta over the draw of the benign rows; crc promises a mean
false-positive rate <= alpha. All three hold for any score distribution at any number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate.extra import extra
from refusal_edge.errors import InvalidRequestError

CertifiedMethod = Literal["np", "ltt", "crc"]
Scores = npt.NDArray[np.float64]

# Levels are compared with this relative slack, so that (1 - .3)^3 counts as <= .343 whatever the last bit of each.
LEVEL_SLACK: Final = 1e-9

# ltt needs cuts fixed before the data is seen: refuse nothing, then log-odds from +24 down to -24 (1 - 4e-11 to 4e-11).
LTT_GRID: Final = np.append(np.inf, np.linspace(24.0, -24.0, 4097))


@lru_cache(maxsize=1024)
def allowed_false_positives(n: int, alpha: float, delta: float) -> int:
    """Largest m with P(Binomial(n, alpha) <= m) <= delta; -1 if there is none.

    A rule that refuses more than a share alpha of all benign prompts refuses m or fewer of n with probability at most
    delta: seeing m or fewer is evidence, at level delta, that the share is at most alpha.
    """
    binom, level = extra("scipy.stats").binom, delta * (1 + LEVEL_SLACK)
    m = int(binom.ppf(level, n, alpha))  # smallest m with cdf >= level
    while m >= 0 and binom.cdf(m, n, alpha) > level:
        m -= 1
    return m


def order_statistic_rank(n: int, alpha: float, delta: float) -> int | None:
    """Rank k (1 = smallest) of the benign score to cut at, or None if n is too small for any.

    Smallest k with P(Binomial(n, 1 - alpha) >= k) <= delta: Tong, Feng and Li, "Neyman-Pearson classification
    algorithms and NP receiver operating characteristics", Science Advances 4(2), 2018, proposition 1 (the umbrella
    algorithm).
    """
    m = allowed_false_positives(n, alpha, delta)
    return None if m < 0 else n - m


def rows_needed(method: CertifiedMethod, alpha: float, delta: float) -> int:
    """Fewest benign rows with which `method` can promise anything.

    np, ltt: smallest n with (1 - alpha)^n <= delta. crc: smallest n with 1 / (n + 1) <= alpha.
    """
    if method == "crc":
        return math.ceil(1 / alpha - 1 - 1e-9)
    n = max(1, math.ceil(math.log(delta) / math.log1p(-alpha)) - 1)
    while allowed_false_positives(n, alpha, delta) < 0:
        n += 1
    return n


def np_cut(scores: Scores, alpha: float, delta: float) -> float:
    """Neyman-Pearson umbrella (Tong, Feng, Li 2018): the order statistic of `order_statistic_rank`.

    Raises:
        InvalidRequestError: too few benign rows, with the number needed.
    """
    rank = order_statistic_rank(_enough(scores, "np", alpha, delta), alpha, delta)
    assert rank is not None  # rows_needed asks the same function
    return float(np.partition(scores, rank - 1)[rank - 1])


def ltt_cut(scores: Scores, alpha: float, delta: float, grid: Scores = LTT_GRID) -> float:
    """Learn then Test (Angelopoulos, Bates, Candes, Jordan, Lei, arXiv 2110.01052) by fixed-sequence testing.

    The grid is walked from its most cautious cut on, which must refuse nothing; each cut's null hypothesis
    "false-positive rate > alpha" has the exact binomial p-value P(Binomial(n, alpha) <= refused); the walk stops at the
    first p > delta, and the last cut rejected is returned. With one threshold this is np rounded up to the grid.

    Raises:
        InvalidRequestError: too few benign rows, with the number needed.
    """
    n = _enough(scores, "ltt", alpha, delta)
    refused = n - np.searchsorted(np.sort(scores), grid, side="right")
    accepted = refused <= allowed_false_positives(n, alpha, delta)  # p-value <= delta
    passed = len(grid) if accepted.all() else int(np.argmin(accepted))
    return float(grid[passed - 1])


def crc_cut(scores: Scores, alpha: float, delta: float = 0.0) -> float:
    """Conformal risk control (Angelopoulos, Bates, Fisch, Lei, Schuster, arXiv 2208.02814), 0/1 loss on benign rows.

    The smallest cut with (refused + 1) / (n + 1) <= alpha. `delta` is not used: the promise is about the mean.

    Raises:
        InvalidRequestError: too few benign rows, with the number needed.
    """
    n = _enough(scores, "crc", alpha, delta)
    refused = math.floor(alpha * (n + 1) - 1 + 1e-9)
    return float(np.partition(scores, n - 1 - refused)[n - 1 - refused])


CERTIFIED: Final[dict[CertifiedMethod, Callable[[Scores, float, float], float]]] = {
    "np": np_cut,
    "ltt": ltt_cut,
    "crc": crc_cut,
}


def _enough(scores: Scores, method: CertifiedMethod, alpha: float, delta: float) -> int:
    n, needed = len(scores), rows_needed(method, alpha, delta)
    if n < needed:
        confidence = "" if method == "crc" else f", delta {delta:g}"
        raise InvalidRequestError(
            f"{method}: cannot certify alpha {alpha:g}{confidence} from {n} benign rows: needs at least {needed}"
        )
    return n
