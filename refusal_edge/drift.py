"""What changed between two models on the same rows: decisions, rates, ranking, log-odds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import metrics, odds
from refusal_edge.calibrate.metrics import Rate
from refusal_edge.calibrate.replay import replay
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.errors import InvalidRequestError
from refusal_edge.policy import Policy
from refusal_edge.report.facts import ranked_rows

LARGEST_MOVES: Final = 3

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Move:
    """The log-odds of a category on one row, before and after; infinite where a score is exactly 0 or 1."""

    id: str
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        infinite = math.isinf(self.before) or math.isinf(self.after)
        return {"id": self.id, "before": _finite(self.before), "after": _finite(self.after), "infinite": infinite}


@dataclass(frozen=True)
class Shift:
    """One category, or all rows together ("all").

    Attributes:
        flips: rows of this category that are decided differently.
        caught, false_refusals: (A, B) at the same thresholds, of the rows with a label.
        auroc: (A, B) of the category's log-odds, for "all" of 1 - p(respond), as in the report; NaN where there is
            nothing to rank.
        median_move: median absolute change of this category's log-odds over all rows; NaN for "all".
        largest_moves: the largest of these changes, the largest first; none for "all".
    """

    name: str
    flips: Rate
    caught: tuple[Rate, Rate]
    false_refusals: tuple[Rate, Rate]
    auroc: tuple[float, float]
    median_move: float = math.nan
    largest_moves: tuple[Move, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        a, b = self.auroc
        return {
            "category": self.name,
            "flips": self.flips.to_dict(),
            "caught": [r.to_dict() for r in self.caught],
            "false_refusals": [r.to_dict() for r in self.false_refusals],
            "auroc": [_finite(a), _finite(b)],
            "delta_auroc": _finite(b - a),
            "median_move": _finite(self.median_move),
            "largest_moves": [move.to_dict() for move in self.largest_moves],
        }


@dataclass(frozen=True)
class Drift:
    """Model B against model A under one policy."""

    models: tuple[str, str]
    n: int
    overall: Shift
    categories: tuple[Shift, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "models": list(self.models),
            "rows": self.n,
            "overall": self.overall.to_dict(),
            "categories": [s.to_dict() for s in self.categories],
        }


def compare(a: ScoreTable, b: ScoreTable, policy: Policy) -> Drift:
    """Replays `policy` on both; only rows that both could score are compared, with a label or without.

    Raises:
        InvalidRequestError: different rows, no row that both could score, other control tokens, or another temperature
            of scoring.
    """
    a, b = _common_rows(a, b)
    for table in (a, b):
        if table.header.policy.control_token_ids != policy.control_token_ids:
            raise InvalidRequestError(f"drift: the policy's control tokens are not those of {table.header.model}")
    outcomes = replay(a, policy), replay(b, policy)
    flips = ~outcomes[0].same_as(outcomes[1])
    refused = outcomes[0].turned_away, outcomes[1].turned_away
    labelled = a.select(a.labelled)

    def shift(name: str, rows: Mask, ranked: Mask, scores: tuple[Array, Array], **moves: Any) -> Shift:
        """`ranked` is a mask of the labelled rows: what the scores are to tell apart."""
        wanted, benign = rows & a.refuse, rows & a.labelled & ~a.refuse
        outcome = labelled.refuse[ranked]
        return Shift(
            name,
            flips=metrics.rate(flips[rows]),
            caught=(metrics.rate(refused[0][wanted]), metrics.rate(refused[1][wanted])),
            false_refusals=(metrics.rate(refused[0][benign]), metrics.rate(refused[1][benign])),
            auroc=(
                metrics.auroc(scores[0][a.labelled][ranked], outcome),
                metrics.auroc(scores[1][a.labelled][ranked], outcome),
            ),
            **moves,
        )

    everything = np.ones(len(a), bool)
    p_refuse = odds.p_refuse(a, policy.temperature), odds.p_refuse(b, policy.temperature)
    log_odds = odds.log_odds(a, policy), odds.log_odds(b, policy)
    categories = []
    for c, slug in enumerate(policy.thresholds):
        before, after = log_odds[0][:, c], log_odds[1][:, c]
        moved = _distance(before, after)
        largest = [i for i in np.argsort(-moved, kind="stable")[:LARGEST_MOVES] if moved[i] > 0]
        moves = tuple(Move(a.ids[i], float(before[i]), float(after[i])) for i in largest)
        categories.append(
            shift(
                slug,
                a.category == c,
                ranked_rows(labelled, c)[0],
                (before, after),
                median_move=float(np.median(moved)),
                largest_moves=moves,
            )
        )
    overall = shift("all", everything, np.ones(len(labelled), bool), p_refuse)
    return Drift((a.header.model, b.header.model), len(a), overall, tuple(categories))


def _distance(a: Array, b: Array) -> Array:
    """|b - a|, where two equal infinities have none between them."""
    same = a == b
    return np.asarray(np.abs(np.where(same, 0.0, b) - np.where(same, 0.0, a)))


def _common_rows(a: ScoreTable, b: ScoreTable) -> tuple[ScoreTable, ScoreTable]:
    if a.header.dataset_sha256 != b.header.dataset_sha256:
        raise InvalidRequestError(
            f"drift: scores of different rows ({a.header.dataset} and {b.header.dataset}): score both on one file"
        )
    temperatures = a.header.policy.temperature, b.header.policy.temperature
    if temperatures[0] != temperatures[1]:
        raise InvalidRequestError(
            f"drift: scored at the temperatures {temperatures[0]:g} and {temperatures[1]:g}: "
            "score both under one policy (`refusal-edge score --policy POLICY.json`)"
        )
    if a.sha256 == b.sha256:
        return a, b
    # Both hold rows of one file in its order, and a row that one could not score is missing with all rows like it.
    held = set(a.sha256) & set(b.sha256)
    a, b = (table.select(np.array([digest in held for digest in table.sha256], bool)) for table in (a, b))
    if not held or a.sha256 != b.sha256:
        raise InvalidRequestError(
            f"drift: {a.header.model} and {b.header.model} hold no rows in common, or not in one order: "
            "score both on one file"
        )
    return a, b


def _finite(number: float) -> float | None:
    """JSON knows neither NaN nor infinities."""
    return number if math.isfinite(number) else None
