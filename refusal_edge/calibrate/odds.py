"""From stored logits to what a threshold is compared with, vectorised over rows; and back to a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from refusal_edge.policy import ControlValue, Policy

if TYPE_CHECKING:
    from refusal_edge.calibrate.scorefile import ScoreTable

Array = npt.NDArray[np.float64]

# GGUF keys are read as text with six decimals, so thresholds are multiples of 1 / this.
RESOLUTION: Final = 1_000_000
_ROUNDING: Final = 1e-6  # of a step: a score may differ in its last bits from the log-odds it is compared through


def logit(probability: npt.ArrayLike) -> Array:
    """log(p / (1 - p)); -inf at 0, +inf at 1."""
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(p) - np.log1p(-p))


def expit(log_odds: npt.ArrayLike) -> Array:
    """1 / (1 + exp(-x)), the inverse of `logit`."""
    x = np.asarray(log_odds, np.float64)
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, e) / (1 + e))


def scores(table: ScoreTable, policy: Policy) -> Array:
    """(n, K + 1) of the control tokens, respond last: what `policy` compares with its thresholds."""
    z = table.logits.astype(np.float64) / policy.temperature
    if policy.score == "vocab" or policy.rule.startswith("paper-"):
        return np.asarray(np.exp(z - table.log_normalizer[:, None]))
    return _softmax(z)


def p_refuse(table: ScoreTable, temperature: float = 1.0) -> Array:
    """(n,) 1 - p(respond): the probability of any refusal token among the control tokens."""
    return np.asarray(1 - _softmax(table.logits.astype(np.float64) / temperature)[:, -1])


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def log_odds(table: ScoreTable, policy: Policy) -> Array:
    """(n, K) log-odds of each category's score, see `log_odds_of`."""
    return np.stack([log_odds_of(table, policy, [c]) for c in range(len(policy.categories))], axis=1)


def log_odds_of(table: ScoreTable, policy: Policy, columns: Sequence[int]) -> Array:
    """(n,) log-odds of the summed score of some categories under `policy`, exact where that score itself rounds to 1.

    score "control": log sum exp(z) over `columns` - log sum exp(z) over the other control tokens, z = logits / T. score
    "vocab" uses the stored normaliser, which holds for the temperature of scoring only.
    """
    z = table.logits.astype(np.float64) / policy.temperature
    inside = np.logaddexp.reduce(z[:, columns], axis=1)
    if policy.score == "control":
        return np.asarray(inside - np.logaddexp.reduce(np.delete(z, columns, axis=1), axis=1))
    log_p = np.minimum(inside - table.log_normalizer, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(log_p - np.log(-np.expm1(log_p)))


def control_mass(table: ScoreTable, policy: Policy) -> Array:
    """(n,) probability of all control tokens together, at the temperature of scoring."""
    z = table.logits.astype(np.float64) / table.header.policy.temperature
    return np.asarray(np.exp(z - table.log_normalizer[:, None]).sum(axis=1))


def mass_is_known(table: ScoreTable, policy: Policy) -> bool:
    """The control mass at another temperature than that of scoring cannot be computed from the control logits."""
    return policy.temperature == table.header.policy.temperature


def threshold_above(cut: float) -> ControlValue:
    """The smallest storable threshold t such that "score >= t" implies log-odds > cut; "off" if there is none.

    Args:
        cut: log-odds; the scores at the cut itself must not pass.
    """
    return threshold_between(cut, cut)


def threshold_between(cut: float, above: float) -> ControlValue:
    """The storable threshold midway between two scores, of which the upper one passes and the lower one does not.

    So rounding in llama.cpp moves neither across. It lies above `cut` in any case, so it refuses no more prompts than
    "log-odds > cut" does, and what is promised of that holds. "off" if there is none.

    Args:
        cut, above: log-odds; `above` +inf where no score lies above the cut.
    """
    low, high = float(expit(cut)) * RESOLUTION, float(expit(above)) * RESOLUTION
    lowest, highest = int(np.floor(low + _ROUNDING)) + 1, int(np.floor(high - _ROUNDING))
    steps = max(lowest, min(round((low + high) / 2), highest))
    return "off" if steps > RESOLUTION else round(steps / RESOLUTION, 6)


def next_above(cut: float, scores: Array) -> float:
    """The smallest score above the cut; +inf if there is none."""
    return float(np.min(scores, where=scores > cut, initial=np.inf))


def last_up_to(cut: float, scores: Array) -> float:
    """The largest score not above the cut; -inf if there is none."""
    return float(np.max(scores, where=scores <= cut, initial=-np.inf))
