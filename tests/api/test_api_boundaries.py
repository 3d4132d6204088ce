"""Asking again gives the same decision, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import BENIGN, HARMFUL, counted_evals, user

from refusal_edge import Llama
from refusal_edge.boundaries import Boundaries
from refusal_edge.errors import InvalidLogitsError


def test_the_same_prompt_scores_the_same_whatever_the_context_holds(llm: Llama) -> None:
    first = llm.decide(user(HARMFUL))
    llm.decide(user("something else entirely"))
    llm.create_chat_completion(user(HARMFUL), max_tokens=4)
    assert llm.decide(user(HARMFUL)) == first
    llm.reset()
    assert llm.decide(user(HARMFUL)) == first


def test_a_known_boundary_is_not_evaluated_again(llm: Llama) -> None:
    llm.decide(user(BENIGN))
    llm.decide(user(HARMFUL))
    with counted_evals(llm) as sizes:
        strict = llm.decide(user(BENIGN), policy={"safety": 0.0})
    assert sizes == []
    assert strict.category == "safety"


def test_an_answer_after_a_known_boundary_is_the_same(llm: Llama) -> None:
    texts = set()
    for _ in range(3):
        llm.decide(user(HARMFUL))
        texts.add(str(llm.create_chat_completion(user(BENIGN), temperature=0.0, max_tokens=6)["choices"]))
    assert len(texts) == 1


def test_logits_that_cannot_be_decided_on_are_not_kept(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InvalidLogitsError("NaN")

    with monkeypatch.context() as patch:
        patch.setattr(llm._decider, "decide", fail)
        with pytest.raises(InvalidLogitsError):
            llm.decide(user(BENIGN))
    assert llm.decide(user(BENIGN)).outcome == "respond"


def test_only_the_last_few_are_kept() -> None:
    boundaries = Boundaries(capacity=2)
    row = np.zeros(4, dtype=np.float32)
    for i in range(3):
        boundaries.put([i], row + i)
        assert boundaries.get([0]) is not None or i == 2
    row[:] = 9
    assert boundaries.get([1]) is None
    assert boundaries.get([2]) is not None
    assert boundaries.get([0, 2]) is None
    np.testing.assert_array_equal(boundaries.get([2]), [2, 2, 2, 2])
