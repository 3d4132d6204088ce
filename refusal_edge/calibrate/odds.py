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

# GGUF keys are read as text with six decimals, so thresholds are multiples of this.
RESOLUTION: Final = 1_000_000


def logit(probability: npt.ArrayLike) -> Array:
    """log(p / (1 - p)); -inf at 0, +inf at 1."""
    from scipy.special import logit as scipy_logit

    return np.asarray(scipy_logit(np.asarray(probability, np.float64)))


def log_odds(table: ScoreTable, policy: Policy) -> Array:
    """(n, K) log-odds of each category's score, see `log_odds_of`."""
    return np.stack([log_odds_of(table, policy, [c]) for c in range(len(policy.categories))], axis=1)


def log_odds_of(table: ScoreTable, policy: Policy, columns: Sequence[int]) -> Array:
    """(n,) log-odds of the summed score of some categories under `policy`, exact where that score itself rounds to 1.

    score "control": log sum exp(z) over `columns` - log sum exp(z) over the other control tokens, z = logits / T. score
    "vocab" uses the stored normaliser, which holds for the temperature of scoring only.
    """
    from scipy.special import logsumexp

    z = table.logits.astype(np.float64) / policy.temperature
    inside = logsumexp(z[:, columns], axis=1)
    if policy.score == "control":
        return np.asarray(inside - logsumexp(np.delete(z, columns, axis=1), axis=1))
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
    from scipy.special import expit

    if cut == -np.inf:
        return 0.0
    steps = int(np.floor(float(expit(cut)) * RESOLUTION)) + 1
    return "off" if steps > RESOLUTION else round(steps / RESOLUTION, 6)
