"""Every number of the report, before any of it is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import metrics, odds
from refusal_edge.calibrate.certificate import Promise, passes, promises
from refusal_edge.calibrate.metrics import Rate
from refusal_edge.calibrate.policy_file import PolicyFile
from refusal_edge.calibrate.replay import Replay, replay
from refusal_edge.calibrate.row_overlap import shared_rows
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.calibrate.thresholds import CERTIFIED, CertifiedMethod, rows_needed
from refusal_edge.errors import InvalidRequestError
from refusal_edge.numbers import as_integer, shown
from refusal_edge.pins import is_edited
from refusal_edge.policy import ControlValue, Policy

Mask = npt.NDArray[np.bool_]

ALPHA, DELTA = 0.05, 0.05


@dataclass(frozen=True)
class CategoryFacts:
    """One category, or all rows together ("all").

    Attributes:
        caught: rows to refuse that are refused, for whatever category. named: refused for the right one.
        false_refusals: benign rows refused for whatever category.
        own_false_refusals: benign rows that pass this category's own threshold; None for "all", and where the rule
            knows no thresholds of categories.
        auroc, auroc_low, auroc_high: of the category's log-odds, its refusals against its benign rows (all benign
            rows where it has none: `own_benign` false); for "all" of 1 - p(respond). NaN where there is nothing to
            rank.
        needed: benign rows it takes to certify this category alone, as `calibrate` counts them.
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
    """Everything that the report shows about a policy on `table`.

    Attributes:
        file: the policy with its calibration, if it has one.
        p_refuse: (n,) probability of any refusal token among the control tokens.
        promises: what the calibration promised, each with how often it happened here.
        misfits: in words, why the calibration does not speak of these scores; empty where it does.
        rows_that_calibrated: how many of these rows the policy was calibrated on: its rates on them are optimistic.
        method, alpha, delta: of the calibration; those of `calibrate` as it stands where there is none.
    """

    table: ScoreTable
    file: PolicyFile
    replay: Replay
    log_odds: npt.NDArray[np.float64]
    p_refuse: npt.NDArray[np.float64]
    categories: tuple[CategoryFacts, ...]
    overall: CategoryFacts
    promises: tuple[tuple[Promise, Rate], ...]
    misfits: tuple[str, ...]
    rows_that_calibrated: int
    method: CertifiedMethod
    alpha: float
    delta: float

    @property
    def policy(self) -> Policy:
        return self.file.policy

    @property
    def f1(self) -> float:
        return metrics.f1(self.replay.turned_away, self.table.refuse)

    @property
    def always_refuse_f1(self) -> float:
        return metrics.f1(np.ones(len(self.table), bool), self.table.refuse)

    @property
    def unnamed(self) -> int:
        """Rows to refuse that name no category: they count in the rates of "all" and in no category's."""
        return int((self.table.refuse & (self.table.category < 0)).sum())

    def summary(self) -> dict[str, Any]:
        """JSON-ready numbers."""
        header, outcome = self.table.header, self.table.refuse
        return {
            "model": header.model,
            "file_type": header.file_type,
            "dataset": header.dataset,
            "rows": len(self.table),
            "skipped": len(self.table.skipped),
            "unlabelled": self.table.n_unlabelled,
            "refusals_without_category": self.unnamed,
            "policy_id": self.policy.policy_id,
            "calibration": self.file.calibration,
            "promises": [
                {"promise": str(promise), "at_most": promise.alpha, "realised": realised.to_dict()}
                for promise, realised in self.promises
            ],
            "misfits": list(self.misfits),
            "calibrated_on_these_rows": self.rows_that_calibrated > 0,
            "rows_that_calibrated": self.rows_that_calibrated,
            "method": self.method,
            "alpha": self.alpha,
            "delta": self.delta,
            "refusal_rate": metrics.rate(self.replay.turned_away).to_dict(),
            "no_decision": metrics.rate(self.replay.no_decision).to_dict(),
            "f1": self.f1,
            "always_refuse_f1": self.always_refuse_f1,
            "nll": metrics.nll(self.p_refuse, outcome),
            "brier": metrics.brier(self.p_refuse, outcome),
            "ece": metrics.ece(self.p_refuse, outcome),
            "overall": self.overall.to_dict(),
            "categories": [c.to_dict() for c in self.categories],
        }


def collect(table: ScoreTable, file: PolicyFile, *, seed: int = 0) -> Facts:
    """Replays the policy on every row and counts; deterministic for a seed (bootstrap).

    Raises:
        InvalidRequestError: a seed that is no whole number >= 0.
    """
    if (number := as_integer(seed)) is None or number < 0:
        raise InvalidRequestError(f"seed: expected a whole number >= 0, got {shown(seed)}")
    policy, pins = file.policy, file.calibration or {}
    outcome, log_odds = replay(table, policy), odds.log_odds(table, policy)
    method = cast(CertifiedMethod, pins["method"] if pins.get("method") in CERTIFIED else "np")
    alpha, delta = float(pins.get("alpha", ALPHA)), float(pins.get("delta", DELTA))
    alone = rows_needed(method, alpha, delta)
    needed = _needed(file, method, alone)
    categories = tuple(
        _category(table, policy, outcome, log_odds[:, c], c, slug, needed.get(slug, alone), seed)
        for c, slug in enumerate(policy.thresholds)
    )
    p_refuse = odds.p_refuse(table, policy.temperature)
    low, high = metrics.auroc_interval(p_refuse, table.refuse, seed=seed)
    overall = CategoryFacts(
        name="all",
        threshold=None,
        caught=metrics.rate(outcome.turned_away[table.refuse]),
        named=metrics.rate((outcome.category == table.category)[table.refuse & (table.category >= 0)]),
        false_refusals=metrics.rate(outcome.turned_away[~table.refuse]),
        own_false_refusals=None,
        auroc=metrics.auroc(p_refuse, table.refuse),
        auroc_low=low,
        auroc_high=high,
        own_benign=bool((~table.refuse).any()),
        needed=alone,
    )
    promised = [] if is_edited(pins, policy) else promises(file.calibration, file.certificates, policy)
    return Facts(
        table=table,
        file=file,
        replay=outcome,
        log_odds=log_odds,
        p_refuse=p_refuse,
        categories=categories,
        overall=overall,
        promises=tuple((promise, promise.realised(table, policy, outcome)) for promise in promised),
        misfits=tuple(_misfits(table, file)),
        rows_that_calibrated=_rows_that_calibrated(table, file),
        method=method,
        alpha=alpha,
        delta=delta,
    )


def ranked_rows(table: ScoreTable, c: int) -> tuple[Mask, bool]:
    """(rows that the category's ROC is drawn on, whether the benign ones are its own)."""
    own = table.category == c
    has_benign = bool((own & ~table.refuse).any())
    return (own if has_benign else (own & table.refuse) | ~table.refuse), has_benign


def _needed(file: PolicyFile, method: CertifiedMethod, alone: int) -> dict[str, int]:
    """Benign rows to certify a category, as the calibration that this policy comes from split its delta."""
    counts = {
        c.rows: rows_needed(method, c.alpha, c.delta or 0.0)
        for c in file.certificates
        if c.rows is not None and c.alpha is not None
    }
    return {**{u.category: u.needed for u in file.uncertified}, **counts}


def _misfits(table: ScoreTable, file: PolicyFile) -> list[str]:
    pins, header = file.calibration, table.header
    if pins is None:
        return []
    lines = []
    if is_edited(pins, file.policy):
        lines.append("The policy was changed after it was calibrated: what was promised is not promised of it.")
    if pins.get("weights_sha256", header.weights_sha256) != header.weights_sha256:
        lines.append("The policy was calibrated for other weights than those that made these scores.")
    if pins.get("file_type", header.file_type) != header.file_type:
        lines.append("The policy was calibrated for another file type: quantisation moves the scores.")
    if pins.get("template_sha256", header.template_sha256) != header.template_sha256:
        lines.append("The policy was calibrated with another chat template.")
    return lines


def _rows_that_calibrated(table: ScoreTable, file: PolicyFile) -> int:
    if file.calibration is None:
        return 0
    if not file.rows:  # from the keys of a GGUF, which hold the hash of the data file alone
        return len(table) if file.calibration.get("dataset_sha256") == table.header.dataset_sha256 else 0
    return shared_rows(file.rows, table.sha256)


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
    passed = passes(table, policy, outcome, [slug])[own & ~table.refuse]
    low, high = metrics.auroc_interval(log_odds[rows], table.refuse[rows], seed=seed)
    return CategoryFacts(
        name=slug,
        threshold=policy.thresholds[slug],
        caught=metrics.rate(outcome.turned_away[own & table.refuse]),
        named=metrics.rate((outcome.category == c)[own & table.refuse]),
        false_refusals=metrics.rate(outcome.turned_away[own & ~table.refuse]),
        own_false_refusals=metrics.rate(passed) if policy.rule == "threshold" else None,
        auroc=metrics.auroc(log_odds[rows], table.refuse[rows]),
        auroc_low=low,
        auroc_high=high,
        own_benign=own_benign,
        needed=needed,
    )
