"""Optional steps before a threshold is chosen: one temperature, and one bias per category.

The temperature goes into the policy. The bias does not: sigmoid(log-odds + bias) grows with the score, so a threshold
on it is a threshold on the score itself, and the biases only decide how the thresholds of the
categories lie to each other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import metrics
from refusal_edge.calibrate.extra import extra
from refusal_edge.calibrate.odds import expit

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]

LOG_TEMPERATURE_BOUND = 4.0  # T in [0.018, 55]
BIAS_PRIOR = 0.01  # keeps the bias finite where a category has no refusals, or nothing else


def fit_temperature(logits: Array, target: npt.NDArray[np.int64]) -> float:
    """T that minimises the NLL of softmax(logits / T): Guo, Pleiss, Sun, Weinberger, arXiv 1706.04599.

    Args:
        logits: (n, categories + 1), control tokens only, respond last.
        target: (n,), the column that should win.
    """

    def loss(log_t: float) -> float:
        z = logits / np.exp(log_t)
        z = z - z.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), target]))

    best = extra("scipy.optimize").minimize_scalar(
        loss, bounds=(-LOG_TEMPERATURE_BOUND, LOG_TEMPERATURE_BOUND), method="bounded"
    )
    return float(np.float32(np.exp(best.x)))


def fit_bias(log_odds: Array, outcome: Labels) -> float:
    """b that minimises the NLL of sigmoid(log_odds + b), with a weak prior at 0 (Platt 1999 with the slope held at
    1).
    """

    def loss(b: float) -> float:
        return metrics.nll(expit(log_odds + b), outcome) + BIAS_PRIOR * b * b / max(1, len(outcome))

    return float(extra("scipy.optimize").minimize_scalar(loss, bounds=(-30.0, 30.0), method="bounded").x)


def quality(log_odds: Array, outcome: Labels) -> dict[str, float]:
    """NLL, Brier score and ECE of sigmoid(log_odds) (n, categories), averaged over the categories one against the
    rest.
    """
    probability = expit(log_odds)
    columns = range(log_odds.shape[1])
    return {
        name: float(np.mean([measure(probability[:, c], outcome[:, c]) for c in columns]))
        for name, measure in (("nll", metrics.nll), ("brier", metrics.brier), ("ece", metrics.ece))
    }
