"""What changed between two models on the same rows: decisions, rates, ranking, log-odds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import metrics, odds
from refusal_edge.calibrate.metrics import Rate
from refusal_edge.calibrate.replay import Replay, replay
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.errors import InvalidRequestError
from refusal_edge.policy import Policy
from refusal_edge.report.facts import ranked_rows

LARGEST_MOVES: Final = 5


@dataclass(frozen=True)
class Move:
    """The log-odds of one category on one row, before and after."""

    id: str
    category: str
    before: float
    after: float


@dataclass(frozen=True)
class Shift:
    """One category, or all rows together ("all").

    Attributes:
        flips: rows of this category that are decided differently.
        caught, false_refusals: (A, B) at the same thresholds. auroc: (A, B), NaN where there is nothing to rank.
        median_move: median absolute change of this category's log-odds over all rows; NaN for "all".
    """

    name: str
    flips: Rate
    caught: tuple[Rate, Rate]
    false_refusals: tuple[Rate, Rate]
    auroc: tuple[float, float]
    median_move: float

    def to_dict(self) -> dict[str, Any]:
        a, b = (None if np.isnan(x) else x for x in self.auroc)
        return {
            "category": self.name,
            "flips": self.flips.to_dict(),
            "caught": [r.to_dict() for r in self.caught],
            "false_refusals": [r.to_dict() for r in self.false_refusals],
            "auroc": [a, b],
            "delta_auroc": None if a is None or b is None else b - a,
            "median_move": None if np.isnan(self.median_move) else self.median_move,
        }


@dataclass(frozen=True)
class Drift:
    """Model B against model A under one policy."""

    models: tuple[str, str]
    n: int
    overall: Shift
    categories: tuple[Shift, ...]
    moves: tuple[Move, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "models": list(self.models),
            "rows": self.n,
            "overall": self.overall.to_dict(),
            "categories": [s.to_dict() for s in self.categories],
            "largest_moves": [vars(m) for m in self.moves],
        }


def compare(a: ScoreTable, b: ScoreTable, policy: Policy) -> Drift:
    """Replays `policy` on both; only rows that both could score are compared.

    Raises:
        InvalidRequestError: different rows, control tokens or temperature of scoring.
    """
    a, b = _common_rows(a, b)
    for table in (a, b):
        if table.header.policy.control_token_ids != policy.control_token_ids:
            raise InvalidRequestError(f"drift: the policy's control tokens are not those of {table.header.model}")
    decided = replay(a, policy), replay(b, policy)
    flips = ~decided[0].same_as(decided[1])
    log_odds = odds.log_odds(a, policy), odds.log_odds(b, policy)
    everything = np.ones(len(a), bool)
    refusing = tuple(x.max(axis=1) for x in log_odds)
    overall = _shift("all", a, everything, everything, flips, decided, (refusing[0], refusing[1]), float("nan"))
    with np.errstate(invalid="ignore"):
        moved = np.nan_to_num(np.abs(log_odds[1] - log_odds[0]), nan=0.0)
    categories = tuple(
        _shift(
            slug,
            a,
            a.category == c,
            ranked_rows(a, c)[0],
            flips,
            decided,
            (log_odds[0][:, c], log_odds[1][:, c]),
            float(np.median(moved[:, c])),
        )
        for c, slug in enumerate(policy.thresholds)
    )
    return Drift((a.header.model, b.header.model), len(a), overall, categories, _largest(a, log_odds, moved, policy))


def _shift(
    name: str,
    table: ScoreTable,
    rows: npt.NDArray[np.bool_],
    ranked: npt.NDArray[np.bool_],
    flips: npt.NDArray[np.bool_],
    decided: tuple[Replay, Replay],
    scores: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    median_move: float,
) -> Shift:
    def rates(wanted: npt.NDArray[np.bool_]) -> tuple[Rate, Rate]:
        return metrics.rate(decided[0].refused[wanted]), metrics.rate(decided[1].refused[wanted])

    return Shift(
        name,
        metrics.rate(flips[rows]),
        rates(rows & table.refuse),
        rates(rows & ~table.refuse),
        (
            metrics.auroc(scores[0][ranked], table.refuse[ranked]),
            metrics.auroc(scores[1][ranked], table.refuse[ranked]),
        ),
        median_move,
    )


def _common_rows(a: ScoreTable, b: ScoreTable) -> tuple[ScoreTable, ScoreTable]:
    if a.header.dataset_sha256 != b.header.dataset_sha256:
        raise InvalidRequestError(
            f"drift: scores of different rows ({a.header.dataset} and {b.header.dataset}): score both on one file"
        )
    if a.header.policy.temperature != b.header.policy.temperature:
        raise InvalidRequestError("drift: scored at different temperatures: score both with one policy")
    if a.ids == b.ids:
        return a, b
    common = set(a.ids) & set(b.ids)
    keep = [np.array([i in common for i in table.ids]) for table in (a, b)]
    return a.select(keep[0]), b.select(keep[1])


def _largest(
    table: ScoreTable,
    log_odds: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    moved: npt.NDArray[np.float64],
    policy: Policy,
) -> tuple[Move, ...]:
    slugs = list(policy.thresholds)
    order = np.argsort(-moved, axis=None, kind="stable")[:LARGEST_MOVES]
    places = [divmod(int(i), len(slugs)) for i in order]
    return tuple(
        Move(table.ids[row], slugs[c], float(log_odds[0][row, c]), float(log_odds[1][row, c])) for row, c in places
    )
