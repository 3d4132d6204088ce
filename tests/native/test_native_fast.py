"""The fast front samples the token that llama_sampler_sample does: every chain, kind of logits, ISA tried."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from native_session import Sampler, Session, make_chain, pointer
from tiny_model import write_tiny_model

from refusal_edge import _native
from refusal_edge.policy import Category, Policy

POLICY = Policy(
    [Category("safety", token_id=17, threshold=0.4), Category("other", token_id=3999)], respond_token_id=1030
)
ROUNDS = 60

Samplers = Callable[[Session, int], list[Sampler]]
Rng = np.random.Generator
Logits = Callable[[Rng, int], npt.NDArray[np.float32]]


def default(session: Session, seed: int, k: int = 40, p: float = 0.95, min_p: float = 0.05) -> list[Sampler]:
    """What llama-cpp-python builds; a value that switches a sampler off makes it an empty one."""
    return [
        llama_cpp.llama_sampler_init_penalties(session.n_vocab, 64, 1.0, 0.0, 0.0),
        llama_cpp.llama_sampler_init_top_k(k),
        llama_cpp.llama_sampler_init_typical(1.0, 1),
        llama_cpp.llama_sampler_init_top_p(p, 1),
        llama_cpp.llama_sampler_init_min_p(min_p, 1),
        llama_cpp.llama_sampler_init_temp(0.8),
        llama_cpp.llama_sampler_init_dist(seed),
    ]


def dist(seed: int) -> Sampler:
    return llama_cpp.llama_sampler_init_dist(seed)


def logit_bias(session: Session) -> Sampler:
    entry = (llama_cpp.llama_logit_bias * 1)(llama_cpp.llama_logit_bias(token=40, bias=7.0))
    return llama_cpp.llama_sampler_init_logit_bias(session.n_vocab, 1, entry)


def grammar(session: Session) -> Sampler:
    return llama_cpp.llama_sampler_init_grammar(session.vocab, b'root ::= " w" [0-9]+', b"root")


def breakers() -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * 1)(b"\n")


CHAINS: dict[str, Samplers] = {
    "greedy": lambda s, seed: [llama_cpp.llama_sampler_init_greedy()],
    "temp then greedy": lambda s, seed: [
        llama_cpp.llama_sampler_init_temp(0.5),
        llama_cpp.llama_sampler_init_greedy(),
    ],
    "default": default,
    "top-k 1": lambda s, seed: default(s, seed, k=1),
    "top-k 64": lambda s, seed: default(s, seed, k=64),
    "top-k 300": lambda s, seed: default(s, seed, k=300),
    "top-k over the vocabulary": lambda s, seed: default(s, seed, k=100_000),
    "no top-k": lambda s, seed: default(s, seed, k=0),
    "top-p alone": lambda s, seed: [llama_cpp.llama_sampler_init_top_p(0.9, 1), dist(seed)],
    "top-k 1000": lambda s, seed: default(s, seed, k=1000),
    "min-p alone": lambda s, seed: default(s, seed, k=0, p=1.0),
    "tiny min-p": lambda s, seed: default(s, seed, k=0, p=1.0, min_p=1e-6),
    "min-p keeps 50": lambda s, seed: [llama_cpp.llama_sampler_init_min_p(0.3, 50), dist(seed)],
    "dist alone": lambda s, seed: [dist(seed)],
    "top-k then greedy": lambda s, seed: [
        llama_cpp.llama_sampler_init_top_k(5),
        llama_cpp.llama_sampler_init_greedy(),
    ],
    "greedy then dist": lambda s, seed: [llama_cpp.llama_sampler_init_greedy(), dist(seed)],
    "penalties": lambda s, seed: [
        llama_cpp.llama_sampler_init_penalties(s.n_vocab, 64, 1.3, 0.1, 0.1),
        *default(s, seed),
    ],
    "top-k then penalties": lambda s, seed: [
        llama_cpp.llama_sampler_init_top_k(50),
        llama_cpp.llama_sampler_init_penalties(s.n_vocab, 64, 1.3, 0.1, 0.1),
        dist(seed),
    ],
    "typical": lambda s, seed: [llama_cpp.llama_sampler_init_typical(0.7, 1), dist(seed)],
    "top-k then typical": lambda s, seed: [
        llama_cpp.llama_sampler_init_top_k(40),
        llama_cpp.llama_sampler_init_typical(0.7, 1),
        dist(seed),
    ],
    "xtc": lambda s, seed: [llama_cpp.llama_sampler_init_xtc(0.5, 0.1, 1, seed), dist(seed)],
    "top-k then xtc": lambda s, seed: [
        llama_cpp.llama_sampler_init_top_k(40),
        llama_cpp.llama_sampler_init_xtc(0.5, 0.1, 1, seed),
        dist(seed),
    ],
    "top-n-sigma": lambda s, seed: [llama_cpp.llama_sampler_init_top_n_sigma(1.0), dist(seed)],
    "mirostat": lambda s, seed: [llama_cpp.llama_sampler_init_mirostat(s.n_vocab, seed, 5.0, 0.1, 100)],
    "mirostat v2": lambda s, seed: [llama_cpp.llama_sampler_init_mirostat_v2(seed, 5.0, 0.1)],
    "dry": lambda s, seed: [
        llama_cpp.llama_sampler_init_dry(s.vocab, 0.8, 1.75, 2, -1, breakers(), 1),
        *default(s, seed),
    ],
    "logit bias": lambda s, seed: [logit_bias(s), *default(s, seed)],
    "grammar": lambda s, seed: [grammar(s), *default(s, seed)],
    "dynamic temperature": lambda s, seed: [llama_cpp.llama_sampler_init_temp_ext(0.8, 0.3, 1.0), dist(seed)],
}


def normal(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    return rng.normal(0, 3, n).astype(np.float32)


def peaked(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    logits = normal(rng, n)
    logits[rng.permutation(n)[:5]] += 15
    return logits


def tied(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    return rng.integers(-20, 20, n).astype(np.float32)


def tied_at_the_kth(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    logits = normal(rng, n)
    order = np.argsort(-logits)
    logits[order[39:43]] = logits[order[39]]
    return logits


def flat(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    return np.full(n, 0.25, np.float32)


def masked(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    logits = normal(rng, n)
    logits[rng.permutation(n)[: n - 60]] = -np.inf
    return logits


def almost_all_masked(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    logits = np.full(n, -np.inf, np.float32)
    logits[rng.permutation(n)[:10]] = rng.normal(0, 1, 10)
    return logits


def zeros_of_both_signs(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    logits = -np.abs(normal(rng, n))
    logits[[100, 2000]] = (-0.0, 0.0)
    return logits


def huge(rng: Rng, n: int) -> npt.NDArray[np.float32]:
    return (rng.normal(0, 1, n) * 1e8).astype(np.float32)


LOGITS: dict[str, Logits] = {
    f.__name__: f
    for f in (normal, peaked, tied, tied_at_the_kth, flat, masked, almost_all_masked, zeros_of_both_signs, huge)
}


@pytest.fixture(params=[n for n in _native.isa_names() if _native.isa_available(n)], scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.isa_force(request.param)
    yield request.param
    _native.isa_force(None)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("name", CHAINS)
def test_same_token_as_stock(session: Session, isa: str, name: str, kind: str) -> None:
    if name in ("grammar", "mirostat") and kind in ("masked", "almost_all_masked"):
        return  # stock llama.cpp itself ends the process when nothing or next to nothing is left
    check_same_tokens(session, name, kind, n_rounds=3 if name == "grammar" else ROUNDS)


def check_same_tokens(session: Session, name: str, kind: str, n_rounds: int) -> None:
    rng = np.random.default_rng(list(f"{name}/{kind}".encode()))
    ours, stock = (
        make_chain(pointer(_native.sampler_init(POLICY, session.n_vocab, "guard")), *CHAINS[name](session, seed=5))
        for _ in range(2)
    )
    for _ in range(n_rounds):
        session.logits[:] = LOGITS[kind](rng, session.n_vocab)
        assert session.our_sample(ours) == session.stock_sample(stock)
    for chain in (ours, stock):
        llama_cpp.llama_sampler_free(chain)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A vocabulary as large as those of models, for chains that are not worth a detour below it."""
    path = tmp_path_factory.mktemp("large") / "tiny.gguf"
    with Session(write_tiny_model(path, n_vocab=70_000)) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["normal", "peaked", "tied", "masked", "zeros_of_both_signs"])
@pytest.mark.parametrize("name", ["default", "no top-k", "min-p alone", "top-p alone", "top-k 1000"])
def test_same_token_as_stock_in_a_large_vocabulary(large: Session, isa: str, name: str, kind: str) -> None:
    check_same_tokens(large, name, kind, n_rounds=10)


@pytest.mark.parametrize("name", CHAINS)
def test_same_answer_as_stock_from_the_decision_on(session: Session, isa: str, name: str) -> None:
    if name == "grammar":
        return  # a grammar cannot follow the decision; see test_a_chain_that_masks_everything_is_an_error
    rng = np.random.default_rng(12)
    ours, stock = (
        make_chain(pointer(_native.sampler_init(POLICY, session.n_vocab)), *CHAINS[name](session, seed=9))
        for _ in range(2)
    )
    for i in range(20):
        session.logits[:] = normal(rng, session.n_vocab)
        if i == 0:
            session.logits[17] = 30.0
        assert session.our_sample(ours) == session.stock_sample(stock)
    for chain in (ours, stock):
        llama_cpp.llama_sampler_free(chain)
