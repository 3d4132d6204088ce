"""Calibration, start to end: scored rows and a target in, a policy with its promises out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import metrics, odds, scaling
from refusal_edge.calibrate.certificate import Certificate, percent
from refusal_edge.calibrate.plan import Scope, Statement, Uncertified, plan
from refusal_edge.calibrate.replay import replay
from refusal_edge.calibrate.row_overlap import sketch
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.calibrate.thresholds import CERTIFIED, order_statistic_rank
from refusal_edge.calibrate.tradeoffs import Costs, joint_cuts
from refusal_edge.errors import InvalidPolicyError, InvalidRequestError
from refusal_edge.numbers import as_integer, as_number, shown
from refusal_edge.pins import SMALLEST_LEVEL
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
        scope: what the promise is about, or which thresholds are searched. "pooled": being refused at all, one
            threshold. "union": the same, a threshold a category. "category": each category's own token alone.
        alpha, delta: the false-positive rate to stay under, and the chance of not doing so.
        rate: share of rows to refuse (method "rate"). cost_fp, cost_fn: >= 0 (method "cost").
        temperature, bias: fit these first, on a share `fit_fraction` of the rows, drawn by `seed`, that no promise
            then uses.
    """

    method: Method = "np"
    scope: Scope = "pooled"
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
        for name in ("alpha", "delta"):
            _number_in(name, getattr(self, name), SMALLEST_LEVEL, 1 - SMALLEST_LEVEL)
        for name in ("rate", "fit_fraction"):
            value = as_number(getattr(self, name))
            if value is None or not 0 < value < 1:
                raise InvalidRequestError(f"{name}: expected a number in (0, 1), got {shown(getattr(self, name))}")
        for name in ("cost_fp", "cost_fn"):
            value = as_number(getattr(self, name))
            if value is None or value < 0:
                raise InvalidRequestError(f"{name}: expected a number >= 0, got {shown(getattr(self, name))}")
        seed = as_integer(self.seed)
        if seed is None or seed < 0:
            raise InvalidRequestError(f"seed: expected a whole number >= 0, got {shown(self.seed)}")
        if self.scope == "union" and not self.promises:
            raise InvalidRequestError(f"scope union: expected method np, ltt or crc, got {self.method!r}")

    @property
    def promises(self) -> bool:
        return self.method in CERTIFIED

    @property
    def costs(self) -> Costs:
        return Costs(self.cost_fp, self.cost_fn, self.rate)


@dataclass(frozen=True)
class Measured:
    """What a policy does on the rows that chose its thresholds: optimistic, report on other rows.

    Attributes:
        false_refusals: benign rows that are refused at all. caught: rows to refuse that are refused.
        f1, always_refuse_f1: of the policy, and of refusing every row.
    """

    false_refusals: metrics.Rate
    caught: metrics.Rate
    f1: float
    always_refuse_f1: float

    @classmethod
    def on(cls, table: ScoreTable, policy: Policy) -> Measured:
        refused, everything = replay(table, policy).turned_away, np.ones(len(table), bool)
        return cls(
            metrics.rate(refused[~table.refuse]),
            metrics.rate(refused[table.refuse]),
            metrics.f1(refused, table.refuse),
            metrics.f1(everything, table.refuse),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "false_refusals": self.false_refusals.to_dict(),
            "caught": self.caught.to_dict(),
            "f1": self.f1,
            "always_refuse_f1": self.always_refuse_f1,
        }


@dataclass(frozen=True)
class Calibration:
    """A policy, its promises, and what could not be promised.

    Attributes:
        scope: what is promised: that of the target, but "pooled" where no category had enough rows of its own.
        n: benign rows that the thresholds rest on.
        rows: which rows were used, those that fitted temperature and bias included; see `row_overlap.sketch`.
        fitted: temperature and biases, with quality before and after on the held-out rows; None if not asked for.
    """

    policy: Policy
    target: Target
    scope: Scope
    certificates: tuple[Certificate, ...]
    uncertified: tuple[Uncertified, ...]
    n: int
    measured: Measured
    warnings: tuple[str, ...]
    rows: tuple[str, ...]
    fitted: dict[str, Any] | None = None


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
    rows = sketch(table.sha256)
    warnings: list[str] = []
    digests = [digest for digest, refuse in zip(table.sha256, table.refuse) if not refuse]
    if target.promises and (n_copies := len(digests) - len(set(digests))):
        warnings.append(
            f"{n_copies} of {len(digests)} benign rows are copies of another: the promise holds if prompts repeat "
            "themselves as often, and means nothing if the copies were made to have more rows"
        )
    fitted, bias = None, np.zeros(len(policy.categories))
    if target.temperature or target.bias:
        fit_rows, other_rows = _split(table, target)
        policy, bias, fitted = _fit_scaling(table.select(fit_rows), table.select(other_rows), policy, target)
        before, after = fitted["before"]["nll"], fitted["bias" if target.bias else "temperature"]["nll"]
        if after > before:
            warnings.append(
                f"temperature or bias made the other rows worse: NLL {before:.4f} before, {after:.4f} after; "
                f"{fitted['rows']} rows are too few to fit them: leave them out, or raise fit_fraction"
            )
        table = table.select(other_rows)
    if not odds.mass_is_known(table, policy):
        warnings.append(
            "the temperature is not that of scoring, so the control mass is not known: false positives are bounded "
            "as if every row were decided; score again with the new policy for exact rates"
        )
    statistic = _Statistic(table, policy, bias)
    n_benign = int((~table.refuse).sum())
    weak: list[Uncertified] = []
    if target.promises:
        benign = {slug: int(statistic.benign(slug).sum()) for slug in slugs}
        statements, weak = plan(target.method, target.scope, benign, n_benign, target.alpha, target.delta)  # type: ignore[arg-type]
        certificates = [_certify(statement, statistic, target) for statement in statements]
    else:
        certificates = _trade_off(statistic, slugs, target)
    chosen: dict[str, ControlValue] = {}
    for certificate in certificates:
        chosen.update(certificate.thresholds)
    if policy.rule == "sum":
        policy = policy.replace(sum_threshold=_sum_threshold(chosen[slugs[0]]))
    else:
        policy = policy.replace(**chosen)
    scope: Scope = "pooled" if len(certificates) == 1 and certificates[0].rows is None else target.scope
    measured = Measured.on(table, policy)
    if target.promises:
        warnings += _over_alpha(measured, target, scope)
        warnings += _too_few(weak)
    return Calibration(
        policy=policy,
        target=target,
        scope=scope,
        certificates=tuple(certificates),
        uncertified=tuple(weak),
        n=n_benign,
        measured=measured,
        warnings=tuple(warnings),
        rows=rows,
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


def _certify(statement: Statement, statistic: _Statistic, target: Target) -> Certificate:
    values = statistic.values(statement.categories)
    benign = values[statistic.benign(statement.rows)]
    cut = CERTIFIED[target.method](benign, statement.alpha, statement.delta)  # type: ignore[index]
    if cut == np.inf and np.isposinf(benign).any():
        raise InvalidRequestError(
            f"{target.method}: {int(np.isposinf(benign).sum())} of {len(benign)} benign rows are refused whatever "
            'the threshold (fallback "refuse" below min_control_mass), which no alpha this small allows'
        )
    return Certificate(
        categories=statement.categories,
        rows=statement.rows,
        alpha=statement.alpha,
        delta=None if target.method == "crc" else statement.delta,
        n=len(benign),
        rank=order_statistic_rank(len(benign), statement.alpha, statement.delta) if target.method == "np" else None,
        cut=cut,
        refused=int((benign > cut).sum()),
        thresholds=statistic.thresholds(statement.categories, cut),
    )


def _trade_off(statistic: _Statistic, slugs: tuple[str, ...], target: Target) -> list[Certificate]:
    """One cut for all ("pooled"), or one a category, searched together: either way the rows as a whole are judged."""
    table = statistic.table
    # A refusal that belongs to a category that is off is no error of the others. "rate" counts rows, not errors.
    ours = np.isin(table.category, [-1, *(statistic.index[slug] for slug in slugs)])
    rows = ~table.refuse | ours | (target.method == "rate")
    groups = [slugs] if target.scope == "pooled" else [(slug,) for slug in slugs]
    values = np.stack([statistic.values(group) for group in groups], axis=1)
    cuts = joint_cuts(target.method, values[rows], table.refuse[rows], target.costs)  # type: ignore[arg-type]
    benign = ~table.refuse
    return [
        Certificate(
            categories=group,
            rows=None,
            alpha=None,
            delta=None,
            n=int(benign.sum()),
            rank=None,
            cut=float(cut),
            refused=int((values[benign, column] > cut).sum()),
            thresholds=statistic.thresholds(group, float(cut)),
        )
        for column, (group, cut) in enumerate(zip(groups, cuts))
    ]


def _over_alpha(measured: Measured, target: Target, scope: Scope) -> list[str]:
    if not measured.false_refusals.value > target.alpha:
        return []
    why = (
        ": scope category promises nothing about being refused at all, scope pooled and union do"
        if scope == "category"
        else ""
    )
    return [
        f"{measured.false_refusals} of these benign rows are refused at all, more than alpha = {percent(target.alpha)}"
        f"{why}"
    ]


def _has_both_labels(refuse: Mask) -> bool:
    return bool(refuse.any()) and not bool(refuse.all())


def _too_few(weak: list[Uncertified]) -> list[str]:
    if not weak:
        return []
    names = ", ".join(f"{item.category} ({item.n})" for item in weak)
    return [
        f"too few benign rows of their own: {names}; each needs {weak[0].needed}: cannot certify what happens to "
        "prompts near one of these alone"
    ]


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
    for label, name in ((False, "benign rows"), (True, "rows to refuse")):
        rows = np.flatnonzero(table.refuse == label)
        n = round(target.fit_fraction * len(rows))
        if not 0 < n < len(rows):
            raise InvalidRequestError(
                f"fit_fraction {target.fit_fraction:g}: expected at least one of the {name} to fit on and one to "
                f"measure on, got {n} and {len(rows) - n}"
            )
        fit[rng.permutation(rows)[:n]] = True
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


def _number_in(name: str, value: object, low: float, high: float) -> None:
    number = as_number(value)
    if number is None or not low <= number <= high:
        raise InvalidRequestError(f"{name}: expected a number in [{low:g}, {high:g}], got {shown(value)}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidRequestError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
