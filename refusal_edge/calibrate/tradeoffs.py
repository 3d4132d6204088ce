"""Cuts without a guarantee, chosen on labelled scores: best F1, best Youden index, least cost, a wanted refusal rate.

All refuse iff score > cut. Candidates lie midway between neighbouring distinct scores; of equals the highest cut
(fewest refusals) wins.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from refusal_edge.errors import InvalidRequestError

TradeoffMethod = Literal["f1", "youden", "cost", "rate"]
TRADEOFFS: Final = ("f1", "youden", "cost", "rate")

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]


def sweep(scores: Scores, refuse: Labels) -> tuple[Scores, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every distinct cut, from refusing nothing to refusing everything.

    Args:
        scores: (n,), may hold +-inf.
        refuse: (n,), true where the row should be refused.

    Returns:
        cuts (m,) descending; true positives (m,) and false positives (m,) of "score > cut".
    """
    values, place = np.unique(scores, return_inverse=True)
    true_positives = np.cumsum(np.append(0, np.bincount(place, refuse, len(values))[::-1]))
    false_positives = np.cumsum(np.append(0, np.bincount(place, ~refuse, len(values))[::-1]))
    above, below = np.append(np.inf, values[::-1]), np.append(values[::-1], -np.inf)
    possible = (below < np.inf) & (above > -np.inf)  # +inf is refused at every cut, -inf at none
    cuts = _midpoint(above[possible], below[possible])
    return cuts, true_positives[possible].astype(np.int64), false_positives[possible].astype(np.int64)


def _midpoint(above: Scores, below: Scores) -> Scores:
    above = np.where(np.isinf(above), np.where(np.isinf(below), 1.0, below + 2), above)
    return np.asarray((above + np.where(np.isinf(below), above - 2, below)) / 2)


def tradeoff_cut(
    method: TradeoffMethod,
    scores: Scores,
    refuse: Labels,
    *,
    cost_fp: float = 1.0,
    cost_fn: float = 1.0,
    rate: float = 0.0,
) -> float:
    """The cut that `method` prefers on these rows.

    f1: largest 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979). youden: largest TPR - FPR (Youden, Cancer 3, 1950).
    cost: least
    cost_fp FP + cost_fn FN. rate: refuses as many of all rows as it can without passing the share `rate`; labels
    unused.

    Raises:
        InvalidRequestError: no rows, or a label that the method needs is missing.
    """
    n_refuse, n = int(refuse.sum()), len(scores)
    if n == 0 or (method != "rate" and n_refuse in (0, n)):
        raise InvalidRequestError(
            f"{method}: expected rows of both labels, got {n_refuse} to refuse and {n - n_refuse} to answer"
        )
    cuts, tp, fp = sweep(scores, refuse)
    fn = n_refuse - tp
    if method == "rate":
        return float(cuts[np.flatnonzero(tp + fp <= rate * n + 1e-9)[-1]])
    if method == "f1":
        value = 2 * tp / (2 * tp + fp + fn)
    elif method == "youden":
        value = tp / n_refuse - fp / (n - n_refuse)
    else:
        value = -(cost_fp * fp + cost_fn * fn)
    return float(cuts[np.argmax(value)])
