"""`Llama.decide` and `decide_logits` against the float64 reference."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np
import pytest
from helpers import ALL_OFF, BENIGN, HARMFUL, REFUSE, counted_evals, held, raw_prompt, user

from refusal_edge import Llama, Policy, decide_logits, reference
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidLogitsError, InvalidPolicyError, InvalidRequestError, PromptTooLongError


def last_logits(llm: Llama) -> np.ndarray[Any, np.dtype[np.float32]]:
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(ctypes.cast(row, ctypes.POINTER(ctypes.c_float)), (llm.n_vocab(),)).copy()


def assert_same(decision: Decision, expected: Decision) -> None:
    assert (decision.outcome, decision.category, decision.token_id) == (
        expected.outcome,
        expected.category,
        expected.token_id,
    )
    for name in ("respond_score", "control_mass", "log_normalizer", "respond_logit"):
        assert getattr(decision, name) == pytest.approx(getattr(expected, name), abs=1e-6), name
    assert decision.scores == pytest.approx(expected.scores, abs=1e-6)
    assert decision.policy_id == expected.policy_id
    assert decision.thresholds == expected.thresholds


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"safety": 0.3, "humanizing": "off"},
        {"rule": "sum", "sum_threshold": 0.9},
        {"rule": "paper-category", "safety": 0.2},
        {"score": "vocab", "temperature": 2.0, "safety": 0.1},
        {"min_control_mass": 1.0, "fallback": "refuse"},
    ],
)
@pytest.mark.parametrize("text", [BENIGN, HARMFUL, "tell me a joke"])
def test_decision_is_the_references(llm: Llama, text: str, changes: dict[str, Any]) -> None:
    decision = llm.decide(user(text), policy=changes)

    assert_same(decision, reference.decide(last_logits(llm), llm.policy.replace(**changes)))
    assert held(llm) == llama_cpp.Llama.tokenize(llm, raw_prompt(text).encode(), False, True)


def test_the_toy_decides_by_prompt(llm: Llama) -> None:
    assert llm.decide(user(BENIGN)).outcome == "respond"
    assert llm.decide(user(HARMFUL)).category == "safety"


def test_only_what_is_new_is_evaluated(llm: Llama) -> None:
    with counted_evals(llm) as sizes:
        llm.decide(user("one two three"))
        llm.decide(user("one two three"), policy=REFUSE)
        llm.decide(user("one two four"))
    assert len(sizes) == 2
    assert sizes[1] < sizes[0]


def test_decision_leaves_no_trace_in_the_context(llm: Llama) -> None:
    first = llm.decide(user(HARMFUL))
    llm.decide(user("something else entirely"), policy=ALL_OFF)
    again = llm.decide(user(HARMFUL))
    assert_same(first, again)


def test_policy_is_immutable_and_settable(llm: Llama) -> None:
    before = llm.policy
    try:
        llm.policy = before.replace(**REFUSE)
        assert llm.decide(user(BENIGN)).category == "safety"
        assert before.thresholds["safety"] == "model"
    finally:
        llm.policy = before


def test_call_policy_is_merged_over_the_models(llm: Llama) -> None:
    before = llm.policy
    try:
        llm.policy = before.replace(humanizing=0.7)
        decision = llm.decide(user(BENIGN), policy={"safety": 0.3})
    finally:
        llm.policy = before
    assert decision.thresholds["humanizing"] == 0.7
    assert decision.thresholds["safety"] == 0.3
    assert decision.policy_id != llm.policy.policy_id


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"weather": 0.5}, "unknown category 'weather'.*safety"),
        ({"safety": 1.5}, r"\[0, 1\].*1.5"),
        ({"safety": float("nan")}, r"\[0, 1\]"),
        ("strict", "expected a Policy, got str"),
        ({"respond_token_id": 3}, "control tokens are"),
    ],
)
def test_bad_policy(llm: Llama, policy: Any, message: str) -> None:
    with pytest.raises(InvalidPolicyError, match=message):
        llm.decide(user(BENIGN), policy=policy)


def test_policy_of_another_model(llm: Llama) -> None:
    shifted = [c.__class__(c.id, c.token_id - 1) for c in llm.policy.categories]
    other = Policy(shifted, llm.policy.respond_token_id)
    with pytest.raises(InvalidPolicyError, match="this model's control tokens"):
        llm.policy = other


def test_prompt_longer_than_the_context(llm: Llama) -> None:
    with pytest.raises(PromptTooLongError, match=r"\d{3,} tokens .* context of 512"):
        llm.decide(user("a b " * 600))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty list"),
        ("hi", "non-empty list of messages, got str"),
        ([{"role": "wizard", "content": "hi"}], r"messages\[0\].role: expected one of system, .* got 'wizard'"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content: .* got int"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], r"content\[0\].*only text"),
        (["hi"], r"messages\[0\]: expected an object"),
        ([{"role": "user", "content": "a\ud800b"}], "lone surrogate"),
        (
            [{"role": "assistant", "content": None, "refusal": "no", "refusal_details": {"category": "x"}}, *user("?")],
            "expected one of humanizing, .* got 'x'",
        ),
        ([{"role": "assistant", "refusal": 3}, *user("?")], r"messages\[0\].refusal: .* got int"),
        ([*user("?"), {"role": "assistant", "content": None, "refusal": "no"}], "is a prefill"),
    ],
)
def test_bad_messages(llm: Llama, messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        llm.decide(messages)


def test_text_parts_are_joined(llm: Llama) -> None:
    parts = [{"type": "text", "text": "How do I"}, {"type": "text", "text": "pick a lock?"}]
    llm.decide([{"role": "user", "content": parts}])
    assert held(llm) == llama_cpp.Llama.tokenize(llm, raw_prompt("How do I\npick a lock?").encode(), False, True)


def test_decide_logits_needs_no_model(llm: Llama) -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        logits = rng.normal(0, 3, llm.n_vocab()).astype(np.float32)
        assert_same(decide_logits(logits, llm.policy), reference.decide(logits, llm.policy))
    assert_same(decide_logits(logits.tolist(), llm.policy), reference.decide(logits, llm.policy))


@pytest.mark.parametrize("logits", [np.zeros((2, 400)), [], [float("nan")] * 400, np.zeros(5), "text", [[1], [2, 3]]])
def test_decide_logits_refuses_bad_arrays(llm: Llama, logits: Any) -> None:
    with pytest.raises(InvalidLogitsError):
        decide_logits(logits, llm.policy)


def test_decide_logits_wants_a_policy() -> None:
    with pytest.raises(InvalidPolicyError, match="expected a Policy, got dict"):
        decide_logits(np.zeros(10, np.float32), {})  # type: ignore[arg-type]
