"""The sampler in plain llama.cpp chains on a real context, driven by llama_sampler_sample and by our front."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable

import llama_cpp
import numpy as np
import pytest
from native_session import Sampler, Session, address, make_chain, pointer

from refusal_edge import _native, reference
from refusal_edge.errors import InvalidLogitsError, InvalidPolicyError, RefusalEdgeError
from refusal_edge.policy import Category, Policy

POLICY = Policy(
    [Category("safety", token_id=3990, threshold=0.4), Category("other", token_id=3991)], respond_token_id=3992
)
CONTROL = set(POLICY.control_token_ids)

Tail = Callable[[], list[Sampler]]
TAILS: dict[str, Tail] = {
    "alone": list,
    "greedy": lambda: [llama_cpp.llama_sampler_init_greedy()],
    "default": lambda: [
        llama_cpp.llama_sampler_init_top_k(40),
        llama_cpp.llama_sampler_init_top_p(0.95, 1),
        llama_cpp.llama_sampler_init_min_p(0.05, 1),
        llama_cpp.llama_sampler_init_temp(0.8),
        llama_cpp.llama_sampler_init_dist(11),
    ],
}
DRIVERS: dict[str, Callable[[Session, Sampler], int]] = {"stock": Session.stock_sample, "ours": Session.our_sample}


def chain_with(session: Session, tail: str, phase: _native.Phase = "decide") -> Sampler:
    ours = pointer(_native.sampler_init(POLICY, session.n_vocab, phase))
    return make_chain(ours, *TAILS[tail]())


def put_logits(session: Session, rng: np.random.Generator, boost: float = 20.0) -> None:
    session.logits[:] = rng.normal(0, 3, session.n_vocab)
    session.logits[list(CONTROL)] += np.float32(boost)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("tail", TAILS)
def test_first_token_is_the_decision_of_the_reference(session: Session, tail: str, driver: str) -> None:
    rng = np.random.default_rng(3)
    chain = chain_with(session, tail)
    for _ in range(50):
        put_logits(session, rng)
        expected = reference.decide(session.logits, POLICY)
        assert DRIVERS[driver](session, chain) == expected.token_id
        got = _native.sampler_decision(address(chain), POLICY)
        assert (got.outcome, got.category) == (expected.outcome, expected.category)
        assert got.scores == pytest.approx(expected.scores, rel=2e-6)
        llama_cpp.llama_sampler_reset(chain)
    llama_cpp.llama_sampler_free(chain)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("tail", ["greedy", "default"])
def test_later_tokens_are_never_control_tokens(session: Session, tail: str, driver: str) -> None:
    rng = np.random.default_rng(4)
    chain = chain_with(session, tail)
    put_logits(session, rng)
    DRIVERS[driver](session, chain)
    for _ in range(100):
        put_logits(session, rng)
        assert DRIVERS[driver](session, chain) not in CONTROL
    llama_cpp.llama_sampler_free(chain)


def test_too_little_control_mass_samples_normally(session: Session) -> None:
    chain = chain_with(session, "greedy")
    put_logits(session, np.random.default_rng(5), boost=-30.0)
    assert session.our_sample(chain) == int(session.logits.argmax())
    assert _native.sampler_decision(address(chain), POLICY).outcome == "no_decision"
    llama_cpp.llama_sampler_free(chain)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_logits_fail_closed(session: Session, bad: float) -> None:
    put_logits(session, np.random.default_rng(6))
    session.logits[17] = bad
    chain = chain_with(session, "greedy")
    with pytest.raises(InvalidLogitsError, match="NaN or \\+Inf"):
        session.our_sample(chain)
    assert session.stock_sample(chain) == POLICY.categories[0].token_id  # stock cannot say so: it refuses
    with pytest.raises(InvalidLogitsError):
        _native.sampler_decision(address(chain), POLICY)
    llama_cpp.llama_sampler_free(chain)


def test_a_sampler_of_another_vocabulary_fails_closed(session: Session) -> None:
    put_logits(session, np.random.default_rng(6))
    chain = make_chain(pointer(_native.sampler_init(POLICY, session.n_vocab + 1)))
    with pytest.raises(InvalidLogitsError, match="vocabulary"):
        session.our_sample(chain)
    assert session.stock_sample(chain) == POLICY.categories[0].token_id
    with pytest.raises(InvalidLogitsError, match="vocabulary"):
        _native.sampler_decision(address(chain), POLICY)
    llama_cpp.llama_sampler_free(chain)


def test_never_applied_is_an_error_and_not_a_respond(session: Session) -> None:
    chain = chain_with(session, "greedy")
    with pytest.raises(RefusalEdgeError, match="no decision"):
        _native.sampler_decision(address(chain), POLICY)
    llama_cpp.llama_sampler_free(chain)


def test_a_chain_without_ours_is_an_error(session: Session) -> None:
    chain = make_chain(llama_cpp.llama_sampler_init_greedy())
    with pytest.raises(RefusalEdgeError, match="not a refusal-edge sampler"):
        session.our_sample(chain)
    llama_cpp.llama_sampler_free(chain)


def test_an_output_index_without_logits_is_an_error(session: Session) -> None:
    chain = chain_with(session, "greedy")
    with pytest.raises(RefusalEdgeError, match="no logits at this output index"):
        _native.sampler_sample(address(chain), session.context_address, 999)
    llama_cpp.llama_sampler_free(chain)


def test_a_chain_that_masks_everything_is_an_error_and_accepts_nothing(session: Session) -> None:
    grammar = llama_cpp.llama_sampler_init_grammar(session.vocab, b'root ::= " w7"', b"root")
    ours = pointer(_native.sampler_init(POLICY, session.n_vocab, "decide"))
    chain = make_chain(ours, grammar, llama_cpp.llama_sampler_init_greedy())
    put_logits(session, np.random.default_rng(6))
    with pytest.raises(RefusalEdgeError, match="only a masked one"):
        session.our_sample(chain)  # stock would throw out of llama_sampler_accept and end the process
    llama_cpp.llama_sampler_free(chain)


def test_policy_change_takes_effect_at_the_next_decision(session: Session) -> None:
    chain = chain_with(session, "alone")
    session.logits[:] = 0
    session.logits[3990], session.logits[3992] = 20.0, 19.0
    assert session.our_sample(chain) == 3990
    llama_cpp.llama_sampler_reset(chain)
    strict = POLICY.replace(safety=0.9)
    _native.sampler_set_policy(address(chain), strict)
    assert session.our_sample(chain) == 3992
    assert _native.sampler_decision(address(chain), strict).thresholds["safety"] == 0.9
    with pytest.raises(InvalidPolicyError, match="cannot change"):
        _native.sampler_set_policy(address(chain), POLICY.replace(respond_token_id=5))
    llama_cpp.llama_sampler_free(chain)


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_the_decision_does_not_depend_on_the_seed(session: Session, seed: int) -> None:
    put_logits(session, np.random.default_rng(8))
    ours = pointer(_native.sampler_init(POLICY, session.n_vocab))
    chain = make_chain(ours, llama_cpp.llama_sampler_init_temp(5.0), llama_cpp.llama_sampler_init_dist(seed))
    assert session.our_sample(chain) == reference.decide(session.logits, POLICY).token_id
    llama_cpp.llama_sampler_free(chain)


def bias(token: int) -> Sampler:
    """A custom sampler that overwrites a logit, as a logits processor can: even a masked one comes back."""

    @llama_cpp.llama_cpp.llama_sampler_i_apply
    def apply(_sampler: Sampler, array: Sampler) -> None:
        for i in range(array.contents.size):
            if array.contents.data[i].id == token:
                array.contents.data[i].logit = 99.0
        array.contents.sorted = False

    interface = llama_cpp.llama_sampler_i(apply=apply)
    KEPT.append((interface, apply))
    return llama_cpp.llama_sampler_init(ctypes.pointer(interface), None)


KEPT: list[object] = []


def test_a_later_sampler_cannot_raise_a_control_token(session: Session) -> None:
    ours = pointer(_native.sampler_init(POLICY, session.n_vocab, "guard"))
    chain = make_chain(ours, bias(3991), llama_cpp.llama_sampler_init_greedy())
    put_logits(session, np.random.default_rng(6))
    with pytest.raises(RefusalEdgeError, match="control token was selected mid-answer"):
        session.our_sample(chain)
    llama_cpp.llama_sampler_free(chain)


def test_live_samplers_at_interpreter_exit() -> None:
    script = (
        "from refusal_edge import _native, host\nfrom refusal_edge.policy import Category, Policy\nhost.bind()\n"
        "policy = Policy([Category('safety', token_id=1)], respond_token_id=2)\n"
        "kept = [_native.sampler_init(policy, 1000) for _ in range(20)]\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
