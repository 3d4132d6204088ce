"""The published scripts' rules (arXiv 2412.06748), transcribed a second time, sharing nothing with the package."""

from __future__ import annotations

import math
from collections.abc import Sequence


def probabilities(logits: Sequence[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((z - top) / temperature) for z in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def paper_single(logits: Sequence[float], t: float, refuse: int, respond: int, temperature: float) -> int:
    return refuse if probabilities(logits, temperature)[refuse] >= t else respond


def paper_argmax(logits: Sequence[float], refuse: int, respond: int) -> int:
    return refuse if logits[refuse] >= logits[respond] else respond


def paper_category(
    logits: Sequence[float], thresholds: dict[int, float], categories: Sequence[int], respond: int, temperature: float
) -> int:
    """`thresholds`: token id -> threshold, of the categories that have one."""
    best = categories[0]
    for token in categories:
        if logits[token] > logits[best]:
            best = token
    if best in thresholds:
        return best if probabilities(logits, temperature)[best] >= thresholds[best] else respond
    return list(logits).index(max(logits))
