"""Every number of the report, before any of it is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import metrics, odds
from refusal_edge.calibrate.metrics import Rate
from refusal_edge.calibrate.replay import Replay, replay
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.calibrate.thresholds import rows_needed
from refusal_edge.policy import ControlValue, Policy

Mask = npt.NDArray[np.bool_]

ALPHA, DELTA = 0.05, 0.05


@dataclass(frozen=True)
class CategoryFacts:
    """One category, or all rows together ("all").

    Attributes:
        caught: rows to refuse that are refused, for whatever category. named: refused for the right one.
        false_refusals: benign rows refused for whatever category.
        own_false_refusals: benign rows that pass this category's own threshold; None for "all".
        auroc, auroc_low, auroc_high: of the category's log-odds, its refusals against its benign rows (all benign
            rows where it has none: `own_benign` false); NaN where there is nothing to rank.
        needed: benign rows it takes to certify alpha and delta on this category alone.
    """

    name: str
    threshold: ControlValue | None
    caught: Rate
    named: Rate
    false_refusals: Rate
    own_false_refusals: Rate | None
    auroc: float
    auroc_low: float
    auroc_high: float
    own_benign: bool
    needed: int

    @property
    def certifiable(self) -> bool:
        return self.false_refusals.n >= self.needed

    def to_dict(self) -> dict[str, Any]:
        rates = {
            name: None if (rate := getattr(self, name)) is None else rate.to_dict()
            for name in ("caught", "named", "false_refusals", "own_false_refusals")
        }
        auroc = {
            name: None if math.isnan(getattr(self, name)) else getattr(self, name)
            for name in ("auroc", "auroc_low", "auroc_high")
        }
        rest = {
            "category": self.name,
            "threshold": self.threshold,
            "own_benign": self.own_benign,
            "needed": self.needed,
        }
        return {**rest, **rates, **auroc, "certifiable": self.certifiable}


@dataclass(frozen=True)
class Facts:
    """Everything that the report shows about `policy` on `table`.

    Attributes:
        calibration: the policy's pins, None if it was not calibrated.
        p_refuse: (n,) probability of any refusal token among the control tokens.
        same_rows: the policy was calibrated on these very rows, so its rates here are optimistic.
    """

    table: ScoreTable
    policy: Policy
    calibration: Mapping[str, Any] | None
    replay: Replay
    log_odds: npt.NDArray[np.float64]
    p_refuse: npt.NDArray[np.float64]
    categories: tuple[CategoryFacts, ...]
    overall: CategoryFacts
    alpha: float
    delta: float

    @property
    def same_rows(self) -> bool:
        return self.calibration is not None and self.calibration["dataset_sha256"] == self.table.header.dataset_sha256

    @property
    def f1(self) -> float:
        return f1(int((self.replay.refused & self.table.refuse).sum()), int(self.replay.refused.sum()), self.table)

    @property
    def always_refuse_f1(self) -> float:
        return f1(int(self.table.refuse.sum()), len(self.table), self.table)

    def summary(self) -> dict[str, Any]:
        """JSON-ready numbers."""
        header, outcome = self.table.header, self.table.refuse
        return {
            "model": header.model,
            "file_type": header.file_type,
            "dataset": header.dataset,
            "rows": len(self.table),
            "skipped": len(self.table.skipped),
            "policy_id": self.policy.policy_id,
            "calibration": self.calibration,
            "calibrated_on_these_rows": self.same_rows,
            "alpha": self.alpha,
            "delta": self.delta,
            "refusal_rate": metrics.rate(self.replay.refused).to_dict(),
            "no_decision": metrics.rate(self.replay.no_decision).to_dict(),
            "f1": self.f1,
            "always_refuse_f1": self.always_refuse_f1,
            "nll": metrics.nll(self.p_refuse, outcome),
            "brier": metrics.brier(self.p_refuse, outcome),
            "ece": metrics.ece(self.p_refuse, outcome),
            "overall": self.overall.to_dict(),
            "categories": [c.to_dict() for c in self.categories],
        }


def collect(table: ScoreTable, policy: Policy, calibration: Mapping[str, Any] | None = None, *, seed: int = 0) -> Facts:
    """Replays `policy` on every row and counts; deterministic for a seed (bootstrap)."""
    outcome = replay(table, policy)
    log_odds = odds.log_odds(table, policy)
    z = table.logits.astype(np.float64) / policy.temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    pins = calibration or {}
    alpha, delta = float(pins.get("alpha", ALPHA)), float(pins.get("delta", DELTA))
    needed = rows_needed("np", alpha, delta)
    categories = tuple(
        _category(table, policy, outcome, log_odds[:, c], c, slug, needed, seed)
        for c, slug in enumerate(policy.thresholds)
    )
    p_refuse = 1 - e[:, -1] / e.sum(axis=1)
    low, high = metrics.auroc_interval(p_refuse, table.refuse, seed=seed)
    overall = CategoryFacts(
        name="all",
        threshold=None,
        caught=metrics.rate(outcome.refused[table.refuse]),
        named=metrics.rate((outcome.category == table.category)[table.refuse & (table.category >= 0)]),
        false_refusals=metrics.rate(outcome.refused[~table.refuse]),
        own_false_refusals=None,
        auroc=metrics.auroc(p_refuse, table.refuse),
        auroc_low=low,
        auroc_high=high,
        own_benign=bool((~table.refuse).any()),
        needed=needed,
    )
    return Facts(table, policy, calibration, outcome, log_odds, p_refuse, categories, overall, alpha, delta)


def passes(policy: Policy, slug: str, log_odds: npt.NDArray[np.float64], best: npt.NDArray[np.int64]) -> Mask:
    """(n,) whether the category passes its own control value. `best`: argmax over the control tokens."""
    value, index = policy.thresholds[slug], list(policy.thresholds).index(slug)
    if isinstance(value, float):
        return np.asarray(log_odds >= odds.logit(value))
    return np.asarray(best == index) if value == "model" else np.zeros(len(best), bool)


def ranked_rows(table: ScoreTable, c: int) -> tuple[Mask, bool]:
    """(rows that the category's ROC is drawn on, whether the benign ones are its own)."""
    own = table.category == c
    has_benign = bool((own & ~table.refuse).any())
    return (own if has_benign else (own & table.refuse) | ~table.refuse), has_benign


def f1(true_positives: int, refused: int, table: ScoreTable) -> float:
    total = refused + int(table.refuse.sum())
    return 2 * true_positives / total if total else 0.0


def _category(
    table: ScoreTable,
    policy: Policy,
    outcome: Replay,
    log_odds: npt.NDArray[np.float64],
    c: int,
    slug: str,
    needed: int,
    seed: int,
) -> CategoryFacts:
    own = table.category == c
    rows, own_benign = ranked_rows(table, c)
    passed = passes(policy, slug, log_odds, table.logits.argmax(axis=1))
    low, high = metrics.auroc_interval(log_odds[rows], table.refuse[rows], seed=seed)
    return CategoryFacts(
        name=slug,
        threshold=policy.thresholds[slug],
        caught=metrics.rate(outcome.refused[own & table.refuse]),
        named=metrics.rate((outcome.category == c)[own & table.refuse]),
        false_refusals=metrics.rate(outcome.refused[own & ~table.refuse]),
        own_false_refusals=metrics.rate(passed[own & ~table.refuse]),
        auroc=metrics.auroc(log_odds[rows], table.refuse[rows]),
        auroc_low=low,
        auroc_high=high,
        own_benign=own_benign,
        needed=needed,
    )
