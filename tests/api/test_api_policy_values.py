"""Policy values of every kind: accepted as the numbers they are, or refused in one line."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from refusal_edge import Category, Policy, decide_logits
from refusal_edge.errors import InvalidLogitsError, InvalidPolicyError

POLICY = Policy([Category("safety", 1), Category("other", 2)], 3)


@pytest.mark.parametrize(
    "change",
    [
        {"safety": 10**400},
        {"safety": 10**5000},
        {"safety": np.zeros(3)},
        {"safety": np.float32("nan")},
        {"safety": "0.3"},
        {"safety": True},
        {"temperature": 10**400},
        {"temperature": np.float64("inf")},
        {"categories": 5},
        {"categories": "safety"},
        {"rule": np.array(["sum", "sum"])},
        {"rule": []},
        {"respond_token_id": 1.0},
    ],
)
def test_refused_in_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicyError, match=r"^(threshold of category )?\w+: expected") as caught:
        POLICY.replace(**change)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_not_even_a_list() -> None:
    with pytest.raises(InvalidPolicyError, match="categories: expected a list"):
        Policy(None, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidPolicyError, match="unknown field"):
        Policy.from_dict({1: 2, "a": 3})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), np.float16(0.25), Fraction(1, 4)])
def test_any_real_number_is_a_threshold(value: Any) -> None:
    assert POLICY.replace(safety=value) == POLICY.replace(safety=0.25)
    assert type(POLICY.replace(safety=value).thresholds["safety"]) is float
    assert Policy([Category("safety", np.int64(1))], np.int32(3)).to_dict()["respond_token_id"] == 3  # type: ignore


def test_zero_has_one_sign() -> None:
    assert POLICY.replace(safety=-0.0).policy_id == POLICY.replace(safety=0.0).policy_id


def test_logits_beyond_float() -> None:
    with pytest.raises(InvalidLogitsError, match="logits: expected an array of numbers"):
        decide_logits([10**400] * 4, POLICY)
