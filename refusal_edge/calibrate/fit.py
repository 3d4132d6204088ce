"""Calibration, start to end: scored rows and a target in, a policy with its promises out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import metrics, odds, scaling
from refusal_edge.calibrate.plan import Scope, Statement, Uncertified, plan
from refusal_edge.calibrate.replay import replay
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.calibrate.thresholds import CERTIFIED, order_statistic_rank
from refusal_edge.calibrate.tradeoffs import tradeoff_cut
from refusal_edge.errors import InvalidPolicyError, InvalidRequestError
from refusal_edge.policy import ControlValue, Policy

Method = Literal["np", "ltt", "crc", "f1", "youden", "rate", "cost"]
METHODS: Final = get_args(Method)
SCOPES: Final = get_args(Scope)

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Target:
    """What to calibrate for.

    Attributes:
        method: "np", "ltt", "crc" promise a false-positive rate; "f1", "youden", "rate", "cost" promise nothing.
        scope: "category", "pooled" or "union", see `plan`.
        alpha, delta: in (0, 1): the false-positive rate to stay under, and the chance of not doing so.
        rate: share of rows to refuse (method "rate"). cost_fp, cost_fn: >= 0 (method "cost").
        temperature, bias: fit these first, on a share `fit_fraction` of the rows, drawn by `seed`, that no promise
            then uses.
    """

    method: Method = "np"
    scope: Scope = "category"
    alpha: float = 0.05
    delta: float = 0.05
    rate: float = 0.1
    cost_fp: float = 1.0
    cost_fn: float = 1.0
    temperature: bool = False
    bias: bool = False
    fit_fraction: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("scope", self.scope, SCOPES)
        for name in ("alpha", "delta", "rate", "fit_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidRequestError(f"{name}: expected a number in (0, 1), got {getattr(self, name)!r}")
        for name in ("cost_fp", "cost_fn"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InvalidRequestError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")
        if self.scope == "union" and not self.promises:
            raise InvalidRequestError(f"scope union: expected method np, ltt or crc, got {self.method!r}")

    @property
    def promises(self) -> bool:
        return self.method in CERTIFIED


@dataclass(frozen=True)
class Certificate:
    """What was chosen for some categories, and what that promises.

    Attributes:
        categories: slugs. rows: slug whose benign rows were used, or None for all.
        alpha, delta: after the split over statements; None where nothing is promised.
        n: benign rows used. rank: order statistic cut at (np). cut: log-odds. refused: benign rows of these above the
            cut.
    """

    categories: tuple[str, ...]
    rows: str | None
    alpha: float | None
    delta: float | None
    n: int
    rank: int | None
    cut: float
    refused: int
    thresholds: dict[str, ControlValue]

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "categories": list(self.categories)}


@dataclass(frozen=True)
class Calibration:
    """A policy, its promises, and what could not be promised.

    Attributes:
        n: benign rows that the thresholds rest on.
        fitted: temperature and biases, with quality before and after on the held-out rows; None if not asked for.
        refused_benign: share of these benign rows that the policy refuses for any category. They chose the
            thresholds, so it is optimistic: report on other rows.
    """

    policy: Policy
    target: Target
    certificates: tuple[Certificate, ...]
    uncertified: tuple[Uncertified, ...]
    n: int
    refused_benign: metrics.Rate
    warnings: tuple[str, ...]
    fitted: dict[str, Any] | None = field(default=None)


def calibrate(table: ScoreTable, policy: Policy, target: Target) -> Calibration:
    """Chooses the thresholds of every category of `policy` that is not "off".

    Args:
        policy: same control tokens as the scores; its rule must be "threshold" or "sum".

    Raises:
        InvalidRequestError: too few rows for the promise (with the number needed), or a label that the method needs
            is missing.
        InvalidPolicyError: a rule without free thresholds, a policy of another model, or every category off.
    """
    slugs = _calibrated(table, policy, target)
    warnings: list[str] = []
    fitted, bias = None, np.zeros(len(policy.categories))
    if target.temperature or target.bias:
        fit_rows, rows = _split(table, target)
        policy, bias, fitted = _fit_scaling(table.select(fit_rows), table.select(rows), policy, target)
        table = table.select(rows)
    if not odds.mass_is_known(table, policy):
        warnings.append(
            "the temperature is not that of scoring, so the control mass is not known: false positives are bounded "
            "as if every row were decided; score again with the new policy for exact rates"
        )
    statistic = _Statistic(table, policy, bias)
    if target.promises:
        benign = {slug: int(statistic.benign(slug).sum()) for slug in slugs}
        n_benign = int((~table.refuse).sum())
        statements, weak = plan(target.method, target.scope, benign, n_benign, target.alpha, target.delta)  # type: ignore[arg-type]
    else:
        statements, weak = _statements_without_promise(table, statistic, slugs, target), []
    certificates = [_choose(statement, statistic, target) for statement in statements]
    chosen: dict[str, ControlValue] = {}
    for certificate in certificates:
        chosen.update(certificate.thresholds)
    if policy.rule == "sum":
        policy = policy.replace(sum_threshold=_sum_threshold(chosen[slugs[0]]))
    else:
        policy = policy.replace(**chosen)
    warnings += _shared_threshold_warnings(certificates, weak)
    return Calibration(
        policy=policy,
        target=target,
        certificates=tuple(certificates),
        uncertified=tuple(weak),
        n=int((~table.refuse).sum()),
        refused_benign=metrics.rate(replay(table, policy).refused[~table.refuse]),
        warnings=tuple(warnings),
        fitted=fitted,
    )


class _Statistic:
    """The number a cut is compared with, per row: refused iff statistic > cut. +inf: refused anyway; -inf: never."""

    def __init__(self, table: ScoreTable, policy: Policy, bias: Array) -> None:
        self.table, self.policy, self.bias = table, policy, bias
        self.index = {slug: i for i, slug in enumerate(policy.thresholds)}
        self.log_odds = odds.log_odds(table, policy)
        known = odds.mass_is_known(table, policy)
        self.undecided = known & (odds.control_mass(table, policy) < policy.min_control_mass)

    def benign(self, slug: str | None) -> Mask:
        return ~self.table.refuse & self.of(slug)

    def of(self, slug: str | None) -> Mask:
        everything = np.ones(len(self.table), bool)
        return everything if slug is None else self.table.category == self.index[slug]

    def values(self, slugs: tuple[str, ...]) -> Array:
        """(n,) of being refused through any of `slugs`."""
        columns = [self.index[slug] for slug in slugs]
        if self.policy.rule == "sum":
            value = odds.log_odds_of(self.table, self.policy, columns)
        else:
            value = (self.log_odds[:, columns] + self.bias[columns]).max(axis=1)
        return np.where(self.undecided, np.inf if self.policy.fallback == "refuse" else -np.inf, value)

    def thresholds(self, slugs: tuple[str, ...], cut: float) -> dict[str, ControlValue]:
        return {slug: odds.threshold_above(cut - self.bias[self.index[slug]]) for slug in slugs}


def _choose(statement: Statement, statistic: _Statistic, target: Target) -> Certificate:
    values = statistic.values(statement.categories)
    benign = values[statistic.benign(statement.rows)]
    if target.promises:
        cut = CERTIFIED[target.method](benign, statement.alpha, statement.delta)  # type: ignore[index]
        if cut == np.inf and np.isposinf(benign).any():
            raise InvalidRequestError(
                f"{target.method}: {int(np.isposinf(benign).sum())} of {len(benign)} benign rows are refused whatever "
                'the threshold (fallback "refuse" below min_control_mass), which no alpha this small allows'
            )
    else:
        rows = _labelled_rows(statement, statistic)
        cut = tradeoff_cut(
            target.method,  # type: ignore[arg-type]
            values[rows],
            statistic.table.refuse[rows],
            cost_fp=target.cost_fp,
            cost_fn=target.cost_fn,
            rate=target.rate,
        )
    return Certificate(
        categories=statement.categories,
        rows=statement.rows,
        alpha=statement.alpha if target.promises else None,
        delta=statement.delta if target.method in ("np", "ltt") else None,
        n=len(benign),
        rank=order_statistic_rank(len(benign), statement.alpha, statement.delta) if target.method == "np" else None,
        cut=cut,
        refused=int((benign > cut).sum()),
        thresholds=statistic.thresholds(statement.categories, cut),
    )


def _labelled_rows(statement: Statement, statistic: _Statistic) -> Mask:
    """Rows of the statement; refusals that belong to other categories are no errors of these."""
    table = statistic.table
    if statement.rows is not None:
        return statistic.of(statement.rows)
    ours = np.isin(table.category, [-1, *(statistic.index[slug] for slug in statement.categories)])
    return ~table.refuse | ours


def _statements_without_promise(
    table: ScoreTable, statistic: _Statistic, slugs: tuple[str, ...], target: Target
) -> list[Statement]:
    """Each category on its own rows if these hold both labels, the others share one threshold on all rows."""
    own = [slug for slug in slugs if _has_both_labels(table.refuse[statistic.of(slug)])]
    if target.scope == "pooled":
        own = []
    rest = tuple(slug for slug in slugs if slug not in own)
    statements = [Statement((slug,), slug, target.alpha, target.delta) for slug in own]
    return [*statements, Statement(rest, None, target.alpha, target.delta)] if rest else statements


def _has_both_labels(refuse: Mask) -> bool:
    return bool(refuse.any()) and not bool(refuse.all())


def _shared_threshold_warnings(certificates: list[Certificate], weak: list[Uncertified]) -> list[str]:
    shared = [c for c in certificates if c.rows is None and len(c.categories) > 1]
    names = {slug for c in shared for slug in c.categories}
    lines = [f"{item}; it shares the pooled threshold" for item in weak if item.category in names]
    return lines + [f"{item}" for item in weak if item.category not in names]


def _calibrated(table: ScoreTable, policy: Policy, target: Target) -> tuple[str, ...]:
    scored = table.header.policy
    if policy.control_token_ids != scored.control_token_ids or list(policy.thresholds) != list(scored.thresholds):
        raise InvalidPolicyError("policy: its control tokens are not those of the scores; score with this model")
    if policy.rule not in ("threshold", "sum"):
        raise InvalidPolicyError(f'rule: calibration needs "threshold" or "sum", got {policy.rule!r}')
    if policy.rule == "sum" and (target.scope != "pooled" or target.bias):
        raise InvalidPolicyError('rule "sum" has one threshold: expected --scope pooled and no --bias')
    if policy.score == "vocab" and (target.temperature or not odds.mass_is_known(table, policy)):
        raise InvalidPolicyError('score "vocab": a new temperature needs new scores; leave --temperature out')
    if policy.fallback == "refuse" and target.temperature:
        raise InvalidPolicyError('fallback "refuse": a new temperature moves the control mass; leave --temperature out')
    slugs = tuple(slug for slug, value in policy.thresholds.items() if value != "off")
    if not slugs:
        raise InvalidPolicyError('policy: every category is "off", nothing is left to calibrate')
    return slugs


def _split(table: ScoreTable, target: Target) -> tuple[Mask, Mask]:
    """(fit, rest): a seeded draw of `fit_fraction` within each label."""
    rng = np.random.default_rng(target.seed)
    fit = np.zeros(len(table), bool)
    for label in (False, True):
        rows = np.flatnonzero(table.refuse == label)
        fit[rng.permutation(rows)[: round(target.fit_fraction * len(rows))]] = True
    return fit, ~fit


def _fit_scaling(
    fit: ScoreTable, rest: ScoreTable, policy: Policy, target: Target
) -> tuple[Policy, Array, dict[str, Any]]:
    """The policy with its temperature, the biases, and what both did to the rows that did not fit them."""
    wanted = _wanted(fit, policy)
    known = ~fit.refuse | (fit.category >= 0)  # a refusal without a category has no column that should win
    if not known.any() or not _has_both_labels(fit.refuse[known]):
        raise InvalidRequestError("scaling: expected rows of both labels, with categories, to fit on")
    steps: dict[str, Any] = {"rows": int(known.sum()), "before": _quality(rest, policy, np.zeros(wanted.shape[1]))}
    if target.temperature:
        column = np.where(fit.refuse, fit.category, wanted.shape[1])[known]
        value = scaling.fit_temperature(fit.logits.astype(np.float64)[known], column)
        policy = policy.replace(temperature=round(value, 6))
        steps["temperature"] = {"value": policy.temperature, **_quality(rest, policy, np.zeros(wanted.shape[1]))}
    bias = np.zeros(wanted.shape[1])
    if target.bias:
        log_odds = odds.log_odds(fit, policy)
        bias = np.array([scaling.fit_bias(log_odds[known, c], wanted[known, c]) for c in range(len(bias))])
        values = dict(zip(policy.thresholds, map(float, bias)))
        steps["bias"] = {"value": values, **_quality(rest, policy, bias)}
    return policy, bias, steps


def _wanted(table: ScoreTable, policy: Policy) -> Mask:
    """(n, K): should this row be refused for this category?"""
    return np.asarray(table.refuse[:, None] & (table.category[:, None] == np.arange(len(policy.categories))))


def _quality(table: ScoreTable, policy: Policy, bias: Array) -> dict[str, float]:
    return scaling.quality(odds.log_odds(table, policy) + bias, _wanted(table, policy))


def _sum_threshold(value: ControlValue) -> float:
    return 1.0 if isinstance(value, str) else value


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidRequestError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
