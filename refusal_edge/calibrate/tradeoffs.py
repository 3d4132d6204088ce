"""Cuts without a guarantee, chosen on labelled scores: best F1, best Youden index, least cost, a wanted refusal rate.

All refuse iff score > cut. Candidates lie midway between neighbouring distinct scores; of equals the highest cut
(fewest refusals) wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from refusal_edge.errors import InvalidRequestError

TradeoffMethod = Literal["f1", "youden", "cost", "rate"]
Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


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


@dataclass(frozen=True)
class Costs:
    """What the methods are told: cost of a false refusal and of a missed one ("cost"), share to refuse ("rate")."""

    false_refusal: float = 1.0
    missed_refusal: float = 1.0
    rate: float = 0.1


def worth(method: TradeoffMethod, tp: Counts, fp: Counts, refuse: Labels, costs: Costs) -> Scores:
    """What `method` makes as large as it can, for each pair of counts.

    f1: 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979). youden: TPR - FPR (Youden, Cancer 3, 1950). cost: what errors
    cost, negative. rate: rows refused, -1 where they pass the share `costs.rate`; labels unused.
    """
    n_refuse, n = int(refuse.sum()), len(refuse)
    if method == "rate":
        return np.where(tp + fp <= costs.rate * n + 1e-9, tp + fp, -1.0)
    if method == "f1":
        return np.asarray(2 * tp / (tp + fp + n_refuse))
    if method == "youden":
        return np.asarray(tp / n_refuse - fp / (n - n_refuse))
    return np.asarray(-(costs.false_refusal * fp + costs.missed_refusal * (n_refuse - tp)))


def tradeoff_cut(method: TradeoffMethod, scores: Scores, refuse: Labels, costs: Costs) -> float:
    """The cut of largest `worth` on these rows.

    Raises:
        InvalidRequestError: no rows, a label that the method needs is missing, or too many rows are refused at any cut.
    """
    n_refuse, n = int(refuse.sum()), len(scores)
    if n == 0 or (method != "rate" and n_refuse in (0, n)):
        raise InvalidRequestError(
            f"{method}: expected rows of both labels, got {n_refuse} to refuse and {n - n_refuse} to answer"
        )
    cuts, tp, fp = sweep(scores, refuse)
    values = worth(method, tp, fp, refuse, costs)
    best = int(np.argmax(values))
    if method == "rate" and values[best] < 0:
        raise InvalidRequestError(
            f"rate: {tp[best] + fp[best]} of {n} rows are refused whatever the threshold, more than {costs.rate:g}"
        )
    return float(cuts[best])


def joint_cuts(method: TradeoffMethod, scores: Scores, refuse: Labels, costs: Costs) -> Scores:
    """(K,) cuts for scores (n, K), where a row is refused iff any of its scores is above its cut.

    Begins with the best cut shared by all, then moves one at a time to its best place, the others held, while that
    makes the rows as a whole better. So it is never worse than one cut for all; a better one elsewhere may be missed.
    """
    columns = range(scores.shape[1])
    cuts = np.full(len(columns), tradeoff_cut(method, scores.max(axis=1), refuse, costs))

    def total() -> float:
        refused = (scores > cuts).any(axis=1)
        tp, fp = (np.array([(refused & wanted).sum()]) for wanted in (refuse, ~refuse))
        return float(worth(method, tp, fp, refuse, costs)[0])

    best, previous = total(), -np.inf
    while len(columns) > 1 and best > previous:
        for c in columns:
            by_others = (np.delete(scores, c, axis=1) > np.delete(cuts, c)).any(axis=1)
            cuts[c] = tradeoff_cut(method, np.where(by_others, np.inf, scores[:, c]), refuse, costs)
        best, previous = total(), best
    return cuts
