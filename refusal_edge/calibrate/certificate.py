"""What was chosen for some categories, and in words what that promises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import odds
from refusal_edge.calibrate.metrics import Rate, rate
from refusal_edge.calibrate.replay import Replay
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.errors import InvalidPolicyError
from refusal_edge.numbers import as_integer, as_number, shown
from refusal_edge.pins import SMALLEST_LEVEL
from refusal_edge.policy import MAX_CATEGORIES, ControlValue, Policy, control_value


@dataclass(frozen=True)
class Certificate:
    """One cut, shared by some categories, and the rows that it rests on.

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
        """JSON-ready: JSON knows no infinities, a cut at one is null."""
        cut = None if math.isinf(self.cut) else self.cut
        return {**self.__dict__, "categories": list(self.categories), "cut": cut}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidPolicyError: a missing, unknown or malformed field.
        """
        fields = set(cls.__dataclass_fields__)
        if set(data) != fields:
            raise InvalidPolicyError(f"expected the fields {', '.join(sorted(fields))}, got {', '.join(sorted(data))}")

        def read(name: str, convert: Any, expected: str, none: bool = False) -> Any:
            value = data[name]
            converted = None if value is None else convert(value)
            if converted is None and not (none and value is None):
                raise InvalidPolicyError(f"{name}: expected {expected}, got {shown(value)}")
            return converted

        cut = read("cut", as_number, "a number or null", none=True)
        return cls(
            categories=read("categories", _slugs, "a list of categories"),
            rows=read("rows", lambda value: value if isinstance(value, str) else None, "a category or null", none=True),
            alpha=read("alpha", _share, "a number in (0, 1) or null", none=True),
            delta=read("delta", _share, "a number in (0, 1) or null", none=True),
            n=read("n", _count, "a whole number"),
            rank=read("rank", _count, "a whole number or null", none=True),
            cut=math.inf if cut is None else cut,
            refused=read("refused", _count, "a whole number"),
            thresholds={
                slug: control_value(f"thresholds.{slug}", value)
                for slug, value in read("thresholds", _mapping, "an object").items()
            },
        )


@dataclass(frozen=True)
class Promise:
    """At most a share alpha of benign prompts does something, with confidence 1 - delta.

    Attributes:
        at_all: that something is being refused, for whatever category; else it is passing the threshold of one of
            `categories`, whatever the others say.
        rows: the prompts meant are those near this category; None: all.
        delta: None where the promise is about the average over calibrations (crc).
        n: benign rows that it rests on.
    """

    at_all: bool
    categories: tuple[str, ...]
    rows: str | None
    alpha: float
    delta: float | None
    n: int

    @property
    def event(self) -> str:
        """What happens to at most a share alpha of which prompts."""
        prompts = "benign prompts" if self.rows is None else f"benign prompts near {self.rows}"
        if self.at_all:
            return f"{prompts} are refused at all"
        names = ", ".join(self.categories)
        one_of = "one of " if len(self.categories) > 1 else ""
        return f"{prompts} pass the threshold of {one_of}{names}"

    @property
    def sureness(self) -> str:
        return "on average" if self.delta is None else f"with confidence {percent(1 - self.delta)}"

    def __str__(self) -> str:
        return f"at most {percent(self.alpha)} of {self.event}, {self.sureness}, from {self.n} benign rows"

    def realised(self, table: ScoreTable, policy: Policy, outcome: Replay) -> Rate:
        """How often it happens to the benign rows of `table`; `outcome` is the replay of `policy` on it."""
        rows = ~table.refuse
        if self.rows is not None:
            rows &= table.category == list(policy.thresholds).index(self.rows)
        happens = outcome.turned_away if self.at_all else passes(table, policy, outcome, self.categories)
        return rate(happens[rows])


def promises(pins: Mapping[str, Any] | None, certificates: Sequence[Certificate], policy: Policy) -> list[Promise]:
    """What a calibrated policy promises, the promise about being refused at all first, if there is one.

    Args:
        pins: `PolicyFile.calibration`. certificates: empty where only the keys of a GGUF file are at hand: these do not
            tell the categories apart.
    """
    if pins is None or "alpha" not in pins:
        return []
    found = []
    if pins.get("scope") in ("pooled", "union"):
        active = tuple(slug for slug, value in policy.thresholds.items() if value != "off")
        found.append(Promise(True, active, None, pins["alpha"], pins.get("delta"), pins["n"]))
    if pins.get("scope") != "pooled":
        found += [
            Promise(False, c.categories, c.rows, c.alpha, c.delta, c.n) for c in certificates if c.alpha is not None
        ]
    return found


def passes(table: ScoreTable, policy: Policy, outcome: Replay, categories: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(n,) whether the score of one of `categories` passes its own control value, whatever the others do.

    A row without enough control mass for a decision passes only where the fallback is "refuse".
    """
    q, best = odds.scores(table, policy), table.logits.argmax(axis=1)
    passed = np.zeros(len(table), bool)
    for index, (slug, value) in enumerate(policy.thresholds.items()):
        if slug in categories and value != "off":
            passed |= best == index if isinstance(value, str) else q[:, index] >= value
    return np.where(outcome.no_decision, outcome.turned_away, passed)


def percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def _share(value: object) -> float | None:
    number = as_number(value)
    return number if number is not None and SMALLEST_LEVEL / MAX_CATEGORIES <= number < 1 else None


def _count(value: object) -> int | None:
    number = as_integer(value)
    return number if number is not None and number >= 0 else None


def _slugs(value: object) -> tuple[str, ...] | None:
    if isinstance(value, list) and value and all(isinstance(slug, str) for slug in value):
        return tuple(value)
    return None


def _mapping(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None
