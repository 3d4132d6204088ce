"""The rule inside the backend's graph, through llama_set_sampler, against the CPU path and the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from gpu import SHAPE_TOLERANCE
from native_session import Sampler, Session, address, make_chain, pointer
from tiny_model import write_tiny_model

from refusal_edge import _native, reference
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidLogitsError, InvalidPolicyError, RefusalEdgeError
from refusal_edge.policy import FALLBACKS, RULES, SCORES, Category, ControlValue, Policy

N_VOCAB = 4000
PROMPTS = [[1, *range(300 + 7 * i, 300 + 9 * i + 3)] for i in range(1, 9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("backend") / "tiny.gguf", N_VOCAB)


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[Session]:
    """Without backend samplers: the raw logits."""
    with Session(model) as session:
        yield session


@pytest.fixture
def session(model: Path) -> Iterator[Session]:
    with Session(model) as opened:
        yield opened


def logits_of(plain: Session, tokens: list[int]) -> npt.NDArray[np.float32]:
    plain.decode(tokens)
    return plain.logits.copy()


def policy_on(logits: npt.NDArray[np.float32], rng: np.random.Generator) -> Policy:
    """A random policy whose control tokens are among the likeliest, so that every outcome happens."""
    rule = RULES[int(rng.integers(4))]  # all but paper-category
    n = 1 if rule in ("paper-single", "paper-argmax") else int(rng.integers(1, 6))
    ids = [int(i) for i in rng.permutation(np.argsort(-logits)[:8])[: n + 1]]
    choices: list[ControlValue] = [0.0, 1.0, "off", "model", float(rng.random()) * 0.5]
    values = [choices[int(rng.integers(len(choices)))] for _ in range(n)]
    if rule == "paper-single" and values[0] == "model":
        values[0] = 0.1
    return Policy(
        [Category(f"c{i}", token_id=ids[i], threshold=values[i]) for i in range(n)],
        respond_token_id=ids[-1],
        rule=rule,
        score=SCORES[int(rng.integers(2))],
        temperature=float(rng.choice([1.0, 0.5, 2.0])),
        min_control_mass=float(rng.choice([0.0, 0.05, 0.3, 0.9])),
        fallback=FALLBACKS[int(rng.integers(3))],
        sum_threshold=float(rng.choice([0.0, 0.2, 0.5])),
    )


def backend_chain(session: Session, policy: Policy, *tail: Sampler, sequence: int = 0) -> Sampler:
    ours = pointer(_native.sampler_init(policy, session.n_vocab))
    chain = make_chain(ours, *(tail or (llama_cpp.llama_sampler_init_greedy(),)))
    assert session.attach(chain, sequence)
    assert llama_cpp.llama_sampler_name(llama_cpp.llama_sampler_chain_get(chain, 0)) == b"+refusal-edge"
    return chain


def free(session: Session, chain: Sampler, sequence: int = 0) -> None:
    session.attach(None, sequence)
    llama_cpp.llama_sampler_free(chain)


def assert_same(got: Decision, expected: Decision, tolerance: float = 0.0) -> None:
    for name in ("outcome", "category", "token_id", "model_token_id"):
        assert getattr(got, name) == getattr(expected, name), (name, got, expected)
    small, large = max(tolerance, 1e-6), max(tolerance, 1e-4)
    assert got.scores == pytest.approx(expected.scores, rel=large, abs=small)
    assert got.logits == pytest.approx(expected.logits, rel=large, abs=large)
    assert got.respond_score == pytest.approx(expected.respond_score, rel=large, abs=small)
    assert got.control_mass == pytest.approx(expected.control_mass, rel=large, abs=small)
    assert got.log_normalizer == pytest.approx(expected.log_normalizer, rel=large, abs=large)


def is_marginal(expected: Decision, policy: Policy) -> bool:
    pairs = [(expected.control_mass, policy.min_control_mass)]
    pairs += [(expected.scores[s], v) for s, v in expected.thresholds.items() if isinstance(v, float)]
    pairs += [(sum(expected.scores[s] for s, v in expected.thresholds.items() if v != "off"), policy.sum_threshold)]
    return any(abs(a - b) < 1e-4 for a, b in pairs if b != 0)


def test_first_and_later_tokens_for_every_rule(session: Session, plain: Session) -> None:
    rng = np.random.default_rng(17)
    outcomes: dict[tuple[str, str], int] = {}
    for round_ in range(60):
        prompt = PROMPTS[round_ % len(PROMPTS)]
        logits = logits_of(plain, prompt)
        policy = policy_on(logits, rng)
        expected = reference.decide(logits, policy)
        if is_marginal(expected, policy):
            continue
        chain = backend_chain(session, policy)
        session.decode(prompt)
        token = session.our_sample(chain)
        assert_same(_native.sampler_decision(address(chain), policy), expected)
        key = (policy.rule, expected.outcome)
        outcomes[key] = outcomes.get(key, 0) + 1
        tokens = [*prompt, token]
        if expected.token_id is not None:
            assert token == expected.token_id
        for _ in range(3):
            masked = logits_of(plain, tokens)
            session.decode_more(tokens[-1:])
            masked[list(policy.control_token_ids)] = -np.inf
            tokens.append(session.our_sample(chain))
            assert tokens[-1] == int(masked.argmax())
        free(session, chain)
    assert len(outcomes) >= 9, outcomes


def test_stock_sampling_returns_the_decided_token(session: Session, plain: Session) -> None:
    logits = logits_of(plain, PROMPTS[0])
    policy = dataclasses.replace(policy_on(logits, np.random.default_rng(3)), min_control_mass=0.0)
    chain = backend_chain(session, policy)
    session.decode(PROMPTS[0])
    assert session.stock_sample(chain) == reference.decide(logits, policy).token_id
    assert_same(_native.sampler_decision(address(chain), policy), reference.decide(logits, policy))
    free(session, chain)


def simple_policy(logits: npt.NDArray[np.float32]) -> Policy:
    first, second, third = (int(i) for i in np.argsort(-logits)[:3])
    categories = [Category("safety", token_id=second, threshold=0.2), Category("other", token_id=third)]
    return Policy(categories, respond_token_id=first, min_control_mass=0.0)


def test_a_policy_change_needs_no_new_graph(session: Session, plain: Session) -> None:
    logits = logits_of(plain, PROMPTS[1])
    policy = simple_policy(logits)
    chain = backend_chain(session, policy)
    for changes in ({}, {"safety": "off"}, {"other": 0.01, "safety": "off"}, {"rule": "sum", "sum_threshold": 0.0}):
        changed = policy.replace(**changes)
        _native.sampler_set_policy(address(chain), changed)
        llama_cpp.llama_sampler_reset(chain)
        session.decode(PROMPTS[1])
        session.our_sample(chain)
        assert_same(_native.sampler_decision(address(chain), changed), reference.decide(logits, changed))
    one = Policy(policy.categories, policy.respond_token_id, rule="paper-category")
    with pytest.raises(InvalidPolicyError, match="paper-category cannot run on a backend"):
        _native.sampler_set_policy(address(chain), one)
    free(session, chain)


def test_several_sequences_in_one_batch(model: Path, plain: Session) -> None:
    rng = np.random.default_rng(23)
    prompts = PROMPTS[:3]
    rows = [logits_of(plain, prompt) for prompt in prompts]
    policies = [dataclasses.replace(policy_on(row, rng), min_control_mass=0.0) for row in rows]
    with Session(model, n_seq_max=3) as session:
        chains = [backend_chain(session, policy, sequence=i) for i, policy in enumerate(policies)]
        outputs = session.decode_batch(prompts)
        for i, chain in enumerate(chains):
            expected = reference.decide(rows[i], policies[i])
            assert session.our_sample(chain, outputs[i]) == expected.token_id
            assert_same(_native.sampler_decision(address(chain), policies[i]), expected, SHAPE_TOLERANCE)
        for i, chain in enumerate(chains):
            free(session, chain, sequence=i)


def test_clone_and_reset(session: Session, plain: Session) -> None:
    logits = logits_of(plain, PROMPTS[2])
    policy = simple_policy(logits)
    chain = backend_chain(session, policy)
    session.decode(PROMPTS[2])
    session.our_sample(chain)
    clone = llama_cpp.llama_sampler_clone(chain)
    free(session, chain)
    assert_same(_native.sampler_decision(address(clone), policy), reference.decide(logits, policy))
    llama_cpp.llama_sampler_reset(clone)
    with pytest.raises(RefusalEdgeError, match="no decision"):
        _native.sampler_decision(address(clone), policy)
    assert session.attach(clone)
    session.decode(PROMPTS[2])
    session.our_sample(clone)
    assert_same(_native.sampler_decision(address(clone), policy), reference.decide(logits, policy))
    free(session, clone)


def test_a_random_sampler_behind_it_on_the_backend_cannot_change_the_decision(session: Session, plain: Session) -> None:
    logits = logits_of(plain, PROMPTS[3])
    policy = simple_policy(logits)
    tail = [
        llama_cpp.llama_sampler_init_top_k(40),
        llama_cpp.llama_sampler_init_temp(3.0),
        llama_cpp.llama_sampler_init_dist(3),
    ]
    chain = backend_chain(session, policy, *tail)
    for _ in range(10):
        session.decode(PROMPTS[3])
        assert session.our_sample(chain) == reference.decide(logits, policy).token_id
        session.decode_more([5])
        assert session.our_sample(chain) not in policy.control_token_ids
        llama_cpp.llama_sampler_reset(chain)
    free(session, chain)


def test_a_cpu_sampler_may_follow_it(session: Session, plain: Session) -> None:
    logits = logits_of(plain, PROMPTS[3])
    policy = simple_policy(logits)
    chain = backend_chain(session, policy, llama_cpp.llama_sampler_init_mirostat_v2(1, 5.0, 0.1))
    session.decode(PROMPTS[3])
    assert session.our_sample(chain) == reference.decide(logits, policy).token_id
    assert_same(_native.sampler_decision(address(chain), policy), reference.decide(logits, policy))
    free(session, chain)


def test_nan_logits_fail_closed(tmp_path: Path) -> None:
    with Session(write_tiny_model(tmp_path / "nan.gguf", N_VOCAB, nan_token=77)) as session:
        policy = Policy([Category("safety", token_id=500)], respond_token_id=501)
        chain = backend_chain(session, policy)
        session.decode(PROMPTS[0])
        with pytest.raises(InvalidLogitsError, match="NaN or \\+Inf"):
            session.our_sample(chain)
        assert session.stock_sample(chain) == 500
        with pytest.raises(InvalidLogitsError):
            _native.sampler_decision(address(chain), policy)
        free(session, chain)


def test_a_decision_cannot_be_skipped_silently(session: Session, plain: Session) -> None:
    """A chain that was attached and then used on the CPU's logits: llama.cpp's own sampling leaves our sampler out."""
    logits = logits_of(plain, PROMPTS[4])
    policy = simple_policy(logits)
    chain = backend_chain(session, policy, llama_cpp.llama_sampler_init_mirostat_v2(1, 5.0, 0.1))
    session.attach(None)
    session.decode(PROMPTS[4])
    session.stock_sample(chain)
    with pytest.raises(RefusalEdgeError, match="no decision"):
        _native.sampler_decision(address(chain), policy)
    assert session.our_sample(chain) == reference.decide(logits, policy).token_id  # ours skips nothing
    llama_cpp.llama_sampler_free(chain)


def test_paper_category_stays_on_the_cpu(session: Session) -> None:
    policy = Policy([Category("safety", token_id=500, threshold=0.5)], respond_token_id=501, rule="paper-category")
    chain = make_chain(pointer(_native.sampler_init(policy, session.n_vocab)), llama_cpp.llama_sampler_init_greedy())
    session.attach(chain)
    assert llama_cpp.llama_sampler_name(llama_cpp.llama_sampler_chain_get(chain, 0)) == b"-refusal-edge"
    free(session, chain)
