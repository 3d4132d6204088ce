"""Effective control: does the text follow the token? The 2x2 table token x text in bands of the model's own score."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from refusal_edge.calibrate import metrics, odds
from refusal_edge.calibrate.metrics import Rate
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.errors import InvalidRequestError

BANDS: Final = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Band:
    """Rows whose probability of a refusal token (among the control tokens) lies in [low, high).

    Attributes:
        after_respond, after_refuse: how often the text reads as a refusal when that token was forced.
    """

    low: float
    high: float
    after_respond: Rate
    after_refuse: Rate

    def to_dict(self) -> dict[str, Any]:
        return {
            "low": self.low,
            "high": self.high,
            "refusal_text_after_respond": self.after_respond.to_dict(),
            "refusal_text_after_refuse": self.after_refuse.to_dict(),
        }


def control_table(table: ScoreTable) -> list[Band]:
    """One row a band, and one for all rows together.

    Raises:
        InvalidRequestError: the scores hold no judged texts.
    """
    if table.header.judge is None:
        raise InvalidRequestError("these scores hold no judged texts: run `refusal-edge score --text` with another -o")
    refuse = odds.p_refuse(table)

    def band(low: float, high: float) -> Band:
        rows = (refuse >= low) & ((refuse < high) | (high == 1.0))
        return Band(low, high, *(metrics.rate(table.text[rows, column] == 1) for column in (0, 1)))

    return [*(band(low, high) for low, high in pairwise(BANDS)), band(0.0, 1.0)]
