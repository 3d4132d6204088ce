"""Sampling one token: our front against llama_sampler_sample on the same chain, logits and seed.

    pytest bench/bench_sampling.py --benchmark-only --benchmark-group-by=group

Not measured: decoding. A real context holds a row of logits that is put there before each chain is timed; the
contenders first sample 200 tokens side by side and must agree on each. Stock has no GUARD in its chain when it is
timed, so it does less than we do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "native"))

import data
import llama_cpp
import numpy as np
import pytest
from native_session import Sampler, Session, address, make_chain, pointer
from tiny_model import write_tiny_model

from refusal_edge import _native, host
from refusal_edge._native import ffi, lib

ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]
N_AGREE = 200


def default(seed: int) -> list[Sampler]:
    """llama-cpp-python's defaults."""
    return [
        llama_cpp.llama_sampler_init_top_k(40),
        llama_cpp.llama_sampler_init_typical(1.0, 1),
        llama_cpp.llama_sampler_init_top_p(0.95, 1),
        llama_cpp.llama_sampler_init_min_p(0.05, 1),
        llama_cpp.llama_sampler_init_temp(0.8),
        llama_cpp.llama_sampler_init_dist(seed),
    ]


def greedy(seed: int) -> list[Sampler]:
    return [llama_cpp.llama_sampler_init_greedy()]


def min_p(seed: int) -> list[Sampler]:
    return [
        llama_cpp.llama_sampler_init_min_p(0.05, 1),
        llama_cpp.llama_sampler_init_temp(0.8),
        llama_cpp.llama_sampler_init_dist(seed),
    ]


CHAINS: dict[str, Callable[[int], list[Sampler]]] = {"default": default, "greedy": greedy, "min-p": min_p}


@pytest.fixture(scope="module", params=data.VOCABULARIES, ids=str)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    host.bind()
    path = tmp_path_factory.mktemp("bench") / "random.gguf"
    with Session(write_tiny_model(path, int(request.param))) as opened:
        yield opened


@pytest.fixture(params=data.KINDS)
def rows(request: pytest.FixtureRequest, session: Session) -> data.Logits:
    return data.KINDS[request.param](session.n_vocab)


def guarded(session: Session, name: str) -> Sampler:
    ours = pointer(_native.sampler_init(data.policy(session.n_vocab), session.n_vocab, "guard"))
    return make_chain(ours, *CHAINS[name](1))


def check_agreement(session: Session, name: str, rows: data.Logits) -> None:
    ours, stock = guarded(session, name), guarded(session, name)
    for i in range(N_AGREE):
        session.logits[:] = rows[i % len(rows)]
        assert session.our_sample(ours) == session.stock_sample(stock)
    llama_cpp.llama_sampler_free(ours)
    llama_cpp.llama_sampler_free(stock)


def run(benchmark: Any, session: Session, name: str, sample: Callable[[], object], **info: str) -> None:
    benchmark.group = f"{name} chain, {session.n_vocab} tokens"
    benchmark.extra_info.update(data.environment(), **info)
    benchmark(sample)


@pytest.mark.parametrize("name", CHAINS)
def test_stock(benchmark: Any, session: Session, rows: data.Logits, name: str) -> None:
    session.logits[:] = np.where(np.arange(session.n_vocab) < session.n_vocab - 6, rows[0], -np.inf)
    chain = make_chain(*CHAINS[name](1))
    run(benchmark, session, name, lambda: llama_cpp.llama_sampler_sample(chain, session.context, -1))
    llama_cpp.llama_sampler_free(chain)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("isa", ISAS)
def test_ours(benchmark: Any, session: Session, rows: data.Logits, name: str, isa: str) -> None:
    _native.isa_force(isa)
    check_agreement(session, name, rows)
    session.logits[:] = rows[0]
    chain = guarded(session, name)
    pointers = (
        ffi.cast("struct llama_sampler *", address(chain)),
        ffi.cast("struct llama_context *", session.context_address),
    )
    status = ffi.new("redge_status *")
    run(benchmark, session, name, lambda: lib.redge_sampler_sample(*pointers, -1, status), isa=isa)
    llama_cpp.llama_sampler_free(chain)
    _native.isa_force(None)
