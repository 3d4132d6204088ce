"""The first token of an answer in llama-cpp-python: our DECIDE sampler against a NumPy logits_processor.

    pytest bench/bench_first_token.py --benchmark-only

Both apply the same rule and are timed as llama-cpp-python runs them: a greedy chain on a real context, one token,
decoding not included. The logits_processor costs this on every token of the answer, ours only on the first. They agree
first, on every row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).parent.parent / "tests" / folder) for folder in ("", "native"))

import data
import llama_cpp
import numpy as np
import pytest
from native_session import address, make_chain, pointer
from tiny_model import write_tiny_model

from refusal_edge import _native, host, reference
from refusal_edge._native import ffi, lib

ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]


@pytest.fixture(scope="module", params=data.VOCABULARIES, ids=str)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[llama_cpp.Llama]:
    host.bind()
    path = write_tiny_model(tmp_path_factory.mktemp("bench") / "random.gguf", int(request.param))
    with_model = llama_cpp.Llama(str(path), n_ctx=256, verbose=False)
    with_model.eval([1, 5, 6])
    yield with_model
    with_model.close()


def logits(llm: llama_cpp.Llama) -> data.Logits:
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(row, shape=(llm.n_vocab(),))


def test_logits_processor(benchmark: Any, llm: llama_cpp.Llama) -> None:
    policy = data.policy(llm.n_vocab())
    process = data.logits_processor(policy)
    processors = llama_cpp.LogitsProcessorList([lambda _ids, scores: process(np.asarray(scores))])
    chain = llm._init_sampler(temp=0.0, logits_processor=processors)
    for row in data.peaked(llm.n_vocab()):
        logits(llm)[:] = row
        assert chain.sample(llm._ctx, -1) == reference.decide(row, policy).token_id
    data.describe(benchmark, "first token", "NumPy logits_processor", "peaked", llm.n_vocab())
    benchmark(lambda: chain.sample(llm._ctx, -1))


@pytest.mark.parametrize("isa", ISAS)
def test_ours(benchmark: Any, llm: llama_cpp.Llama, isa: str) -> None:
    _native.isa_force(isa)
    policy = data.policy(llm.n_vocab())
    first = pointer(_native.sampler_init(policy, llm.n_vocab()))
    chain = make_chain(first, llama_cpp.llama_sampler_init_greedy())
    ours = ffi.cast("struct llama_sampler *", address(chain))
    context = ffi.cast("struct llama_context *", address(llm.ctx))
    status = ffi.new("redge_status *")

    def sample() -> int:
        llama_cpp.llama_sampler_reset(chain)
        return int(lib.redge_sampler_sample(ours, context, -1, status))

    for row in data.peaked(llm.n_vocab()):
        logits(llm)[:] = row
        assert sample() == reference.decide(row, policy).token_id
    data.describe(benchmark, "first token", data.OURS, "peaked", llm.n_vocab(), isa=isa)
    benchmark(sample)
    llama_cpp.llama_sampler_free(chain)
    _native.isa_force(None)
