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

sys.path.extend(str(Path(__file__).parent.parent / "tests" / folder) for folder in ("", "native"))

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


def top_p(seed: int) -> list[Sampler]:
    return [
        llama_cpp.llama_sampler_init_top_p(0.95, 1),
        llama_cpp.llama_sampler_init_temp(0.8),
        llama_cpp.llama_sampler_init_dist(seed),
    ]


def min_p(seed: int) -> list[Sampler]:
    return [
        llama_cpp.llama_sampler_init_min_p(0.05, 1),
        llama_cpp.llama_sampler_init_temp(0.8),
        llama_cpp.llama_sampler_init_dist(seed),
    ]


CHAINS: dict[str, Callable[[int], list[Sampler]]] = {
    "default": default,
    "greedy": greedy,
    "top-p": top_p,
    "min-p": min_p,
}


@pytest.fixture(scope="module", params=data.CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def session(case: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    host.bind()
    path = tmp_path_factory.mktemp("bench") / "random.gguf"
    with Session(write_tiny_model(path, case[1])) as opened:
        yield opened
    path.unlink()


@pytest.fixture(scope="module")
def rows(case: tuple[str, int]) -> data.Logits:
    return data.KINDS[case[0]](case[1])


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


@pytest.mark.parametrize("name", CHAINS)
def test_stock(benchmark: Any, session: Session, rows: data.Logits, case: tuple[str, int], name: str) -> None:
    session.logits[:] = np.where(np.arange(session.n_vocab) < session.n_vocab - 6, rows[0], -np.inf)
    chain = make_chain(*CHAINS[name](1))
    data.describe(benchmark, f"{name} chain", "llama_sampler_sample", *case)
    benchmark(lambda: llama_cpp.llama_sampler_sample(chain, session.context, -1))
    llama_cpp.llama_sampler_free(chain)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("isa", ISAS)
def test_ours(benchmark: Any, session: Session, rows: data.Logits, case: tuple[str, int], name: str, isa: str) -> None:
    _native.isa_force(isa)
    check_agreement(session, name, rows)
    session.logits[:] = rows[0]
    chain = guarded(session, name)
    pointers = (
        ffi.cast("struct llama_sampler *", address(chain)),
        ffi.cast("struct llama_context *", session.context_address),
    )
    status = ffi.new("redge_status *")
    data.describe(benchmark, f"{name} chain", data.OURS, *case, isa=isa)
    benchmark(lambda: lib.redge_sampler_sample(*pointers, -1, status))
    llama_cpp.llama_sampler_free(chain)
    _native.isa_force(None)
