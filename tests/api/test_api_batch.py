"""decide_batch: the decisions of decide, many a llama_decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu import SHAPE_TOLERANCE
from helpers import REFUSE, held, user

from refusal_edge import Llama, batch, demo
from refusal_edge.convert import convert
from refusal_edge.errors import InvalidLogitsError, InvalidRequestError, PromptTooLongError

RULES = [{"role": "system", "content": "Be brief, be kind, and say so when you do not know. " * 3}]
PLACES = ["France", "Peru", "Kenya", "Norway", "Japan", "Chile", "Ghana", "Nepal"]
QUESTIONS = ["What is the capital of", "Do you feel lonely in", "How do I smuggle a weapon into", "Who will win in"]
WORDS = ["the", "quick", "brown", "fox", "and", "a", "lazy", "dog", "went", "to", "see", "an", "old", "lock"]


def conversations() -> list[list[dict[str, Any]]]:
    """Short and long ones, with and without a shared beginning, more than fit one group."""
    rng = np.random.default_rng(11)
    short = [user(" ".join(rng.choice(WORDS, size=rng.integers(1, 9)))) for _ in range(70)]
    long = user(" ".join(rng.choice(WORDS, size=60)))
    ruled = [[*RULES, *conversation] for conversation in short[:40]]
    return [*short, long, *ruled, long, short[0], short[0]]


@pytest.mark.parametrize("n_batch", [16, 512])
def test_the_same_decisions_as_one_by_one(toy_path: Path, n_batch: int) -> None:
    llm = Llama(toy_path, n_ctx=512, n_batch=n_batch, verbose=False, n_threads=1, n_threads_batch=1)
    rows = conversations()
    one, many = [llm.decide(row) for row in rows], llm.decide_batch(rows)
    assert [(d.outcome, d.category, d.token_id, d.policy_id, d.calibrated) for d in one] == [
        (d.outcome, d.category, d.token_id, d.policy_id, d.calibrated) for d in many
    ]
    assert len({d.outcome for d in one}) > 1
    for a, b in zip(one, many):
        assert b.scores == pytest.approx(a.scores, abs=max(1e-3, SHAPE_TOLERANCE))
        assert b.control_mass == pytest.approx(a.control_mass, abs=max(1e-3, SHAPE_TOLERANCE))


@pytest.mark.parametrize("decode_cost", [8, 100])
@pytest.mark.parametrize("outtype", ["bf16", "q8_0", "q4_0"])
def test_the_same_scores_whatever_the_type_of_the_weights(
    outtype: str, decode_cost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding activations to 8 bits makes much of a last bit: 3e-3 where a prompt's rest begins in any cell."""
    monkeypatch.setattr(batch, "DECODE_COST", decode_cost)
    convert(demo.checkpoint(), tmp_path / "demo.gguf", outtype=outtype)
    llm = Llama(tmp_path / "demo.gguf", n_ctx=512, verbose=False, n_threads=1, n_threads_batch=1)
    asked = [f"{what} {place}?" for what in QUESTIONS for place in PLACES]
    plain = [user(text) for text in asked]
    for rows in (plain, [[*RULES, *row] for row in plain[::3]]):
        one, many = [llm.decide(row) for row in rows], llm.decide_batch(rows)
        assert [(d.outcome, d.category) for d in one] == [(d.outcome, d.category) for d in many]
        difference = max(abs(a.scores[s] - b.scores[s]) for a, b in zip(one, many) for s in a.scores)
        assert difference < max(2e-4, SHAPE_TOLERANCE)


def test_a_prompt_lies_in_the_blocks_of_cells_as_it_does_alone(toy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of the cache for each token, in order: that of a prompt's token is its position, but for whole blocks."""
    llm = Llama(toy_path, n_ctx=512, verbose=False, n_threads=1, n_threads_batch=1)
    llm._batch_decider._block = batch.BLOCK
    seen = {"prefix": 0, "alone": 0, "padded": 0}
    real = batch._decode

    def check(context: Any, tokens: Any, sequences: Any, positions: Any, wanted: Any) -> int:
        prompts = sequences != batch.PADDING
        cells = len(llm._batch_decider._prefix) + np.arange(len(tokens))
        assert ((cells - positions) % 16)[prompts].max() == 0
        assert not wanted[~prompts].any()
        assert prompts[-1], "nothing is computed behind the last prompt"
        seen["prefix" if sequences[0] == 0 else "alone" if prompts.all() else "padded"] += 1
        return real(context, tokens, sequences, positions, wanted)

    monkeypatch.setattr(batch, "_decode", check)
    assert len(llm.decide_batch(conversations())) == len(conversations())
    for decode_cost in (100, 8, 100):  # each prompt with padding, then alone
        monkeypatch.setattr(batch, "DECODE_COST", decode_cost)
        llm.decide_batch([[*RULES, *user("a quick fox " + word)] for word in WORDS])
    assert min(seen.values()) > 0, seen


def test_a_shared_beginning_is_computed_once(toy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = Llama(toy_path, n_ctx=1024, verbose=False, n_threads=1, n_threads_batch=1)
    rows = [[*RULES, *user(word)] for word in WORDS] * 10
    lengths = [len(llm._chat_prompt(row, llm.policy, {}).boundary) for row in rows]
    decoded = []
    real = batch._decode
    monkeypatch.setattr(
        batch, "_decode", lambda ctx, tokens, *rest: decoded.append(len(tokens)) or real(ctx, tokens, *rest)
    )
    llm.decide_batch(rows)
    llm.decide_batch(rows)
    assert sum(decoded) < 0.4 * 2 * sum(lengths)
    assert len(decoded) < len(rows)


def test_the_conversation_in_the_first_context_stays(llm: Llama) -> None:
    llm.decide(user("hi"))
    before = held(llm)
    llm.decide_batch(conversations()[:5])
    assert held(llm) == before


def test_a_policy_for_one_call(llm: Llama) -> None:
    refused = llm.decide_batch([user("hi")], policy=REFUSE)
    assert [(d.outcome, d.category) for d in refused] == [("refuse", "safety")]
    assert llm.decide_batch([]) == []


def test_the_whole_context_can_be_used_after_a_long_shared_beginning(toy_path: Path) -> None:
    llm = Llama(toy_path, n_ctx=512, n_batch=128, verbose=False, n_threads=1, n_threads_batch=1)
    ruled = [[{"role": "system", "content": "be kind " * 40}, *user(word)] for word in WORDS]
    llm.decide_batch(ruled)
    text = "a lock " * 200
    while True:
        try:
            expected = llm.decide(user(text))
            break
        except PromptTooLongError:
            text = text[:-7]
    assert llm.decide_batch([user(text)])[0].scores == pytest.approx(expected.scores, abs=1e-3)
    assert [d.category for d in llm.decide_batch(ruled)] == [llm.decide(row).category for row in ruled]


def test_a_prompt_over_the_context_is_an_error_and_the_next_call_works(toy_path: Path) -> None:
    llm = Llama(toy_path, n_ctx=256, verbose=False, n_threads=1, n_threads_batch=1)
    expected = llm.decide(user("hi"))
    with pytest.raises(PromptTooLongError, match="tokens do not fit the context of 256"):
        llm.decide_batch([user("hi"), user("lock " * 200)])
    with pytest.raises(InvalidRequestError):
        llm.decide_batch([[]])
    assert llm.decide_batch([user("hi")])[0].scores == pytest.approx(expected.scores, abs=1e-3)


def test_a_context_that_llama_cpp_rounds_up_takes_no_longer_prompts(toy_path: Path) -> None:
    llm = Llama(toy_path, n_ctx=100, verbose=False, n_threads=1, n_threads_batch=1)
    assert llm.n_ctx() > 100
    with pytest.raises(PromptTooLongError, match="do not fit the context of 100"):
        llm.decide_batch([user("lock " * 110)])


def test_nan_logits_are_an_error(make_toy: Any) -> None:
    llm = Llama(make_toy(poison=float("nan")), n_ctx=256, verbose=False, n_threads=1, n_threads_batch=1)
    with pytest.raises(InvalidLogitsError):
        llm.decide_batch([user("hi"), user("ho")])
