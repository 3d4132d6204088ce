"""The decision against np.max over the same logits and against the same rule in NumPy.

    pytest bench/bench_decide.py --benchmark-only --benchmark-group-by=group

Not measured: the model's own work, the chat template, and, in the native rows, which call the C function through cffi,
the Python objects around a decision (they have a row of their own). Contenders agree first, on every row of logits. The
NumPy rule here is the bare function; bench_first_token.py has it where llama-cpp-python calls it, in its sampler chain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import data
import numpy as np
import pytest

from refusal_edge import _native, reference
from refusal_edge._native import ffi, lib

ISAS = [name for name in _native.isa_names() if _native.isa_available(name)]


@pytest.fixture(params=data.CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def rows(case: tuple[str, int]) -> data.Logits:
    return data.KINDS[case[0]](case[1])


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.isa_force(request.param)
    yield request.param
    _native.isa_force(None)


def in_turn(function: Callable[[Any], object], rows: Any) -> Callable[[], object]:
    turn = itertools.cycle(rows)
    return lambda: function(next(turn))


def run(benchmark: Any, function: Callable[[], object], case: tuple[str, int], contender: str, **isa: str) -> None:
    data.describe(benchmark, "decide", contender, *case, **isa)
    benchmark(function)


def test_np_max(benchmark: Any, rows: data.Logits, case: tuple[str, int]) -> None:
    run(benchmark, in_turn(np.max, rows), case, "np.max")


def test_numpy_rule_in_float32(benchmark: Any, rows: data.Logits, case: tuple[str, int]) -> None:
    policy = data.policy(case[1])
    process = data.logits_processor(policy)
    for row in rows:
        expected = reference.decide(row, policy)
        if expected.token_id is not None:
            assert int(process(row).argmax()) == expected.token_id
    run(benchmark, in_turn(process, rows), case, "rule in NumPy")


def test_numpy_reference_in_float64(benchmark: Any, rows: data.Logits, case: tuple[str, int]) -> None:
    policy = data.policy(case[1])
    run(benchmark, in_turn(lambda row: reference.decide(row, policy), rows), case, "rule in NumPy, float64")


def test_native(benchmark: Any, rows: data.Logits, case: tuple[str, int], isa: str) -> None:
    policy = data.policy(case[1])
    struct, decision = _native.policy_struct(policy), ffi.new("redge_decision *")
    for row in rows:
        assert _native.decide(row, policy).token_id == reference.decide(row, policy).token_id

    buffers = [ffi.from_buffer("float[]", row) for row in rows]
    decide = in_turn(lambda row: lib.redge_decide_f32(row, case[1], struct, decision), buffers)
    run(benchmark, decide, case, data.OURS, isa=isa)


def test_decide_with_its_python_object(benchmark: Any, rows: data.Logits, case: tuple[str, int]) -> None:
    policy = data.policy(case[1])
    run(benchmark, in_turn(lambda row: _native.decide(row, policy), rows), case, "refusal-edge, Python object")
