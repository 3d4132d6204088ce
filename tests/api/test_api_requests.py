"""One Llama serves one request at a time: what would mix two of them raises StateError, or waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from helpers import ALL_OFF, BENIGN, HARMFUL, REFUSE, raw_prompt, text_of, user

from refusal_edge import Llama
from refusal_edge.errors import InvalidRequestError, StateError

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
OVERTAKEN = "another request has used its Llama since"


def prompt(text: str) -> str:
    return raw_prompt(text).removeprefix("<|begin_of_text|>")  # llama-cpp-python adds it


def stream(llm: Llama, text: str = BENIGN, **arguments: Any) -> Iterator[Any]:
    return llm.create_chat_completion(user(text), stream=True, **{**GREEDY, **arguments})  # type: ignore


def answer(llm: Llama, text: str = BENIGN, **arguments: Any) -> str:
    return text_of(llm.create_chat_completion(user(text), **{**GREEDY, **arguments}))


def spelled(chunks: Iterator[Any]) -> str:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    return "".join(delta.get("content") or delta.get("refusal") or "" for delta in deltas)


def begun(chunks: Iterator[Any], n: int = 4) -> Iterator[Any]:
    for _ in range(n):
        next(chunks)
    return chunks


@pytest.mark.parametrize("raw", [False, True])
def test_of_two_streams_the_later_one_goes_on_as_if_alone(llm: Llama, raw: bool) -> None:
    def start(policy: dict[str, Any]) -> Any:
        if raw:
            return llm.create_completion(prompt(HARMFUL), policy=policy, stream=True, **GREEDY)
        return stream(llm, HARMFUL, policy=policy)

    def text(chunks: Any) -> str:
        return "".join(chunk["choices"][0]["text"] for chunk in chunks) if raw else spelled(chunks)

    alone = text(start(ALL_OFF))
    refused = begun(start(REFUSE))
    answered = start(ALL_OFF)
    opening = [next(answered) for _ in range(3)]
    with pytest.raises(StateError, match=OVERTAKEN):
        next(refused)
    assert text([*opening, *answered]) == alone


@pytest.mark.parametrize(
    "use",
    [
        lambda llm: llm.decide(user(HARMFUL)),
        lambda llm: answer(llm, HARMFUL),
        lambda llm: llm.create_completion("hello", max_tokens=1),
        lambda llm: next(llm.generate([5, 6, 7])),
        lambda llm: llm.eval([5]),
        lambda llm: llm.sample(),
        lambda llm: llm.reset(),
        lambda llm: llm.load_state(llm.save_state()),
    ],
)
def test_a_stream_does_not_go_on_in_a_context_that_was_used(llm: Llama, use: Callable[[Llama], Any]) -> None:
    for chunks in (begun(stream(llm)), begun(llm.generate(llm.tokenize(prompt(BENIGN).encode(), False, True)))):
        use(llm)
        with pytest.raises(StateError, match=OVERTAKEN):
            next(chunks)
    assert answer(llm) == spelled(stream(llm))


def test_embeddings_end_a_stream_too(toy_path: Path) -> None:
    llm = Llama(toy_path, n_ctx=128, embedding=True, verbose=False)
    chunks = begun(stream(llm))
    llm.embed("hello")
    with pytest.raises(StateError, match=OVERTAKEN):
        next(chunks)
    llm.close()


def test_what_leaves_the_context_alone_leaves_a_stream_alone(llm: Llama) -> None:
    whole = answer(llm)
    llm.decide(user(HARMFUL))  # remembered: nothing is evaluated when it is asked again
    chunks = stream(llm)
    opening = [next(chunks) for _ in range(4)]
    llm.decide(user(HARMFUL))
    llm.decide_batch([user("x"), user("y")])
    llm.tokenize(b"hello")
    llm.save_state()
    llm.policy = llm.policy.replace()
    assert spelled(iter([*opening, *chunks])) == whole


def test_streams_that_are_left_do_not_stand_in_the_way(llm: Llama) -> None:
    whole = answer(llm, HARMFUL)
    closed, dropped, kept = (begun(stream(llm), n) for n in (1, 3, 5))
    closed.close()  # type: ignore[attr-defined]
    del dropped
    assert answer(llm, HARMFUL) == whole
    with pytest.raises(StateError):
        next(kept)
    assert answer(llm, HARMFUL) == whole


def test_an_error_in_the_middle_leaves_the_next_request_alone(llm: Llama) -> None:
    whole = answer(llm)
    calls = []

    def fails_later(ids: Any, scores: Any) -> Any:
        calls.append(len(ids))
        if len(calls) == 3:
            raise KeyError("later")
        return scores

    with pytest.raises(InvalidRequestError, match="KeyError"):
        answer(llm, policy=ALL_OFF, logits_processor=fails_later)
    assert answer(llm) == whole


# ---- from a callback of a request ------------------------------------------------------------------------------------


def test_a_callback_cannot_use_the_llama_that_calls_it(llm: Llama) -> None:
    def decides(ids: Any, scores: Any) -> Any:
        llm.decide(user("something else"))
        return scores

    def stops(ids: Any, scores: Any) -> bool:
        next(iter(llm.create_completion("something else", stream=True)))  # type: ignore
        return False

    with pytest.raises(InvalidRequestError, match="logits_processor: StateError"):
        answer(llm, policy=ALL_OFF, logits_processor=decides)
    criteria = llama_cpp.StoppingCriteriaList([stops])
    with pytest.raises(StateError, match="cannot use the Llama that is calling it"):
        llm.create_completion(prompt(BENIGN), stopping_criteria=criteria)
    assert llm.decide(user(BENIGN)).outcome == "respond"


def test_a_callback_may_read_text(llm: Llama) -> None:
    seen = []

    def stops(ids: Any, scores: Any) -> bool:
        seen.append(llm.detokenize(np.asarray(ids).tolist()))
        return len(seen) == 3

    llm.create_completion(prompt(BENIGN), stopping_criteria=llama_cpp.StoppingCriteriaList([stops]), **GREEDY)
    assert len(seen) >= 3


# ---- threads ---------------------------------------------------------------------------------------------------------


def in_threads(work: Callable[[str], Any], texts: list[str]) -> dict[str, Any]:
    """What `work` gave, or raised, for each text, each in a thread of its own."""
    results: dict[str, Any] = {}
    together = threading.Barrier(len(texts))

    def run(text: str) -> None:
        together.wait()
        try:
            results[text] = work(text)
        except Exception as error:
            results[text] = error

    threads = [threading.Thread(target=run, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


TEXTS = [BENIGN, HARMFUL, "Hello!", "What is 2 + 2?"]


def test_calls_of_threads_wait_for_each_other(llm: Llama) -> None:
    def work(text: str) -> list[Any]:
        results: list[Any] = []
        for i in range(8):
            llm._boundaries.clear()
            results += [llm.decide(user(text)).category, answer(llm, text, policy=(ALL_OFF, REFUSE)[i % 2])]
            results += [d.category for d in llm.decide_batch([user(text), user(text + "?")])]
            completion: Any = llm.create_completion(prompt(text), policy=ALL_OFF, **GREEDY)
            results.append(completion["choices"][0]["text"])
        return results

    together = in_threads(work, TEXTS)
    assert together == {text: work(text) for text in TEXTS}


def test_streams_of_threads_end_whole_or_in_an_error(llm: Llama) -> None:
    whole = {text: answer(llm, text) for text in TEXTS}
    for _ in range(5):
        for text, got in in_threads(lambda text: spelled(stream(llm, text)), TEXTS).items():
            assert got == whole[text] or isinstance(got, StateError)
