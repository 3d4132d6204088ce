"""The native rule against the float64 reference, the golden vectors and a second transcription of the paper's rules."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import paper_rules
import pytest

from refusal_edge import _native, reference
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidLogitsError
from refusal_edge.policy import FALLBACKS, RULES, SCORES, Category, ControlValue, Policy, Score

VECTORS = Path(__file__).parent.parent / "vectors" / "decide.json"
SEED = 41
N_RANDOM = 10_000
ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Any:
    _native.isa_force(request.param)
    yield request.param
    _native.isa_force(None)


def random_policy(rng: np.random.Generator, n_vocab: int) -> Policy:
    rule = RULES[int(rng.integers(len(RULES)))]
    n = 1 if rule in ("paper-single", "paper-argmax") else int(rng.integers(1, 7))
    ids = [int(i) for i in rng.permutation(n_vocab)[: n + 1]]
    choices: list[ControlValue] = [0.0, 1.0, "off", "model", float(rng.random()), float(rng.random())]
    values = [choices[int(rng.integers(len(choices)))] for _ in range(n)]
    if rule == "paper-single" and values[0] == "model":
        values[0] = float(rng.random())
    return Policy(
        [Category(f"c{i}", token_id=ids[i], threshold=values[i]) for i in range(n)],
        respond_token_id=ids[-1],
        rule=rule,
        score=SCORES[int(rng.integers(2))],
        temperature=float(rng.choice([1.0, 1.0, 0.3, 2.5])),
        min_control_mass=float(rng.choice([0.0, 0.5, 1.0])),
        fallback=FALLBACKS[int(rng.integers(3))],
        sum_threshold=float(rng.choice([0.0, 1.0, float(rng.random())])),
    )


def random_logits(rng: np.random.Generator, policy: Policy, n_vocab: int) -> npt.NDArray[np.float32]:
    control = list(policy.control_token_ids)
    logits = rng.normal(0, rng.choice([0.1, 2.0, 10.0]), n_vocab).astype(np.float32)
    logits[control] += np.float32(rng.choice([0.0, 5.0, 12.0]))
    if rng.random() < 0.3:  # ties among the control tokens
        logits[control] = rng.integers(0, 3, len(control)).astype(np.float32) + np.float32(rng.choice([0, 8]))
    if rng.random() < 0.1:  # a tie with the rest of the vocabulary
        logits[int(rng.integers(n_vocab))] = logits.max()
    if rng.random() < 0.2:
        logits[rng.permutation(n_vocab)[: n_vocab // 2]] = -np.inf
    if not np.isfinite(logits[control]).any():
        logits[control[-1]] = 0.0
    return logits


def is_marginal(expected: Decision, policy: Policy, tolerance: float = 1e-6) -> bool:
    """Whether rounding may tip the outcome: some quantity almost equals its threshold (0 is exact, 1 has its test)."""
    pairs = [(expected.control_mass, policy.min_control_mass)]
    pairs += [(expected.scores[s], v) for s, v in expected.thresholds.items() if isinstance(v, float)]
    not_off = sum(expected.scores[s] for s, v in expected.thresholds.items() if v != "off")
    pairs += [(not_off, policy.sum_threshold)] if policy.rule == "sum" else []
    return any(abs(a - b) < tolerance * max(b, 1e-3) for a, b in pairs if b != 0)


def assert_same(got: Decision, expected: Decision) -> None:
    for name in ("outcome", "category", "token_id", "model_token_id", "logits", "respond_logit", "policy_id"):
        assert getattr(got, name) == getattr(expected, name), name
    for slug, score in expected.scores.items():
        assert got.scores[slug] == pytest.approx(score, rel=2e-6, abs=1e-12)
    assert got.respond_score == pytest.approx(expected.respond_score, rel=2e-6, abs=1e-12)
    assert got.control_mass == pytest.approx(expected.control_mass, rel=2e-6, abs=1e-12)
    assert got.log_normalizer == pytest.approx(expected.log_normalizer, rel=1e-6, abs=1e-6)


def test_ten_thousand_random_vectors_agree_with_the_reference(isa: str) -> None:
    rng = np.random.default_rng(SEED)
    outcomes: dict[str, int] = {}
    n_marginal = 0
    for _ in range(N_RANDOM):
        n_vocab = int(rng.choice([8, 15, 16, 17, 63, 64, 65, 300]))
        policy = random_policy(rng, n_vocab)
        logits = random_logits(rng, policy, n_vocab)
        expected = reference.decide(logits, policy)
        if is_marginal(expected, policy):
            n_marginal += 1
            continue
        assert_same(_native.decide(logits, policy), expected)
        outcomes[expected.outcome] = outcomes.get(expected.outcome, 0) + 1
    assert min(outcomes.values()) > 500, outcomes
    assert n_marginal < N_RANDOM // 20


@pytest.mark.parametrize("score", SCORES)
def test_thresholds_of_one_need_all_the_probability_and_of_zero_none(isa: str, score: Score) -> None:
    logits = np.full(20, -np.inf, np.float32)
    logits[3] = 2.0
    policy = dataclasses.replace(POLICY, score=score, min_control_mass=1.0)
    assert _native.decide(logits, policy.replace(safety=1.0)).outcome == "refuse"
    logits[9] = -10.0
    all_needed = policy.replace(min_control_mass=0.0, safety=1.0)
    assert (_native.decide(logits, all_needed).outcome == "refuse") == (score == "control")
    logits[3], logits[5] = -np.inf, 2.0
    assert _native.decide(logits, all_needed).outcome == "respond"
    assert _native.decide(logits, all_needed.replace(safety=0.0)).outcome == "refuse"


def test_ties_go_to_the_lowest_category_index(isa: str) -> None:
    logits = np.zeros(20, np.float32)
    logits[[3, 4, 5]] = 7.0
    assert _native.decide(logits, POLICY.replace(safety="model")).category == "safety"
    assert _native.decide(logits, POLICY.replace(safety="off", other=0.3)).category == "other"
    assert _native.decide(logits, POLICY.replace(safety=1 / 3, other=1 / 3)).category == "safety"
    sum_rule = POLICY.replace(rule="sum", sum_threshold=2 / 3)
    assert _native.decide(logits, sum_rule).category == "safety"
    one = Policy([Category("refuse", token_id=4)], respond_token_id=3, rule="paper-argmax")
    assert _native.decide(logits, one).outcome == "refuse"


def test_paper_rules_agree_with_a_second_transcription(isa: str) -> None:
    rng = np.random.default_rng(SEED + 1)
    for _ in range(2000):
        n_vocab = int(rng.choice([12, 33, 128]))
        policy = random_policy(rng, n_vocab)
        if not policy.rule.startswith("paper-") or "off" in policy.thresholds.values():
            continue
        logits = random_logits(rng, policy, n_vocab)
        if is_marginal(reference.decide(logits, policy), policy):
            continue
        assert _native.decide(logits, policy).token_id == transcribed(logits, policy)


def transcribed(logits: npt.NDArray[np.float32], policy: Policy) -> int:
    z = [float(v) for v in logits]
    *categories, respond = policy.control_token_ids
    if policy.rule == "paper-argmax":
        return paper_rules.paper_argmax(z, categories[0], respond)
    thresholds = {c.token_id: c.threshold for c in policy.categories if isinstance(c.threshold, float)}
    if policy.rule == "paper-single":
        t = thresholds[categories[0]]
        return paper_rules.paper_single(z, t, categories[0], respond, policy.temperature)
    return paper_rules.paper_category(z, thresholds, categories, respond, policy.temperature)


def golden_cases() -> list[dict[str, Any]]:
    return list(json.loads(VECTORS.read_text(encoding="utf-8"))["cases"])


def test_golden_vectors(isa: str) -> None:
    cases = golden_cases()
    assert len(cases) >= 200
    for case in cases:
        logits = np.array([float(z) for z in case["logits"]], dtype=np.float32)
        got = {**_native.decide(logits, Policy.from_dict(case["policy"])).to_dict()}
        for name in ("outcome", "category", "token_id", "model_token_id", "policy_id"):
            assert got[name] == case["expected"][name]
        assert got["scores"] == pytest.approx(case["expected"]["scores"], abs=1e-6)


def test_golden_vectors_are_what_the_reference_says() -> None:
    for case in golden_cases():
        logits = np.array([float(z) for z in case["logits"]], dtype=np.float32)
        got = reference.decide(logits, Policy.from_dict(case["policy"])).to_dict()
        assert got["outcome"] == case["expected"]["outcome"]
        assert got["token_id"] == case["expected"]["token_id"]
        assert got["scores"] == pytest.approx(case["expected"]["scores"], abs=1e-12)


POLICY = Policy([Category("safety", token_id=3, threshold=0.5), Category("other", token_id=4)], respond_token_id=5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n_vocab", [6, 16, 17, 100, 4097])
def test_nan_and_inf_are_errors_wherever_they_stand(isa: str, bad: float, n_vocab: int) -> None:
    for position in {0, 5, n_vocab // 2, n_vocab - 1}:
        logits = np.zeros(n_vocab, np.float32)
        logits[position] = bad
        with pytest.raises(InvalidLogitsError, match="NaN or \\+Inf"):
            _native.decide(logits, POLICY)


@pytest.mark.parametrize(
    "logits",
    [np.zeros((2, 8), np.float32), np.zeros(0, np.float32), np.zeros(5, np.float32), np.full(8, -np.inf, np.float32)],
)
def test_unusable_logits(logits: npt.NDArray[np.float32]) -> None:
    with pytest.raises(InvalidLogitsError):
        _native.decide(logits, POLICY)


def test_the_array_is_read_in_place_and_left_alone() -> None:
    logits = np.random.default_rng(SEED).normal(size=1000).astype(np.float32)
    before = logits.copy()
    logits.flags.writeable = False
    _native.decide(logits, POLICY)
    assert np.array_equal(logits, before)


def test_thresholds_change_the_decision_and_nothing_else() -> None:
    logits = np.zeros(8, np.float32)
    logits[[3, 5]] = (9.0, 10.0)
    decisions = [_native.decide(logits, POLICY.replace(safety=t)) for t in (0.2, 0.3, "off")]
    assert [d.outcome for d in decisions] == ["refuse", "respond", "respond"]
    changed = {"outcome", "category", "token_id", "thresholds", "policy_id"}
    plain = [{k: v for k, v in dataclasses.asdict(d).items() if k not in changed} for d in decisions]
    assert plain[0] == plain[1] == plain[2]
