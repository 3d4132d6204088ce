"""Control tokens in the history, the prefill, and what later turns evaluate."""

from __future__ import annotations

import warnings
from typing import Any

import llama_cpp
import pytest
import toy_model
from helpers import ALL_OFF, BENIGN, HARMFUL, REFUSE, counted_evals, held, raw_prompt, user
from toy_model import MakeToy

from refusal_edge import Llama
from refusal_edge.refusal_texts import RefusalTexts


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, **fields}


def opener(llm: Llama, message: dict[str, Any]) -> int | None:
    """The control token that the history gives this assistant message."""
    ids = llm._chat_prompt([*user("hi"), message, *user("more")], llm.policy, {}).boundary
    found = [i for i in ids if i in llm.policy.control_token_ids]
    assert len(found) <= 1
    if found:
        newlines = llama_cpp.Llama.tokenize(llm, b"\n\n", False, False)
        assert ids[ids.index(found[0]) - 1] == newlines[0]  # right after the header
    return found[0] if found else None


def slug_id(llm: Llama, slug: str) -> int:
    return llm.policy.category(slug).token_id


def test_respond_before_content(llm: Llama) -> None:
    assert opener(llm, assistant(content="Sure.")) == llm.policy.respond_token_id


def test_category_of_the_details_before_a_refusal(llm: Llama) -> None:
    message = assistant(refusal="No.", refusal_details={"outcome": "refuse", "category": "unsupported"})
    assert opener(llm, message) == slug_id(llm, "unsupported")


def test_category_whose_fixed_text_it_is(llm: Llama) -> None:
    assert opener(llm, assistant(refusal=llm.refusal_messages["safety"])) == slug_id(llm, "safety")


def test_category_of_a_refusal_that_only_the_text_is_left_of(llm: Llama) -> None:
    for arguments in ({}, {"on_refuse": "message"}):
        reply: Any = llm.create_chat_completion(user("hi"), policy=REFUSE, seed=7, stop="respond", **arguments)
        text = reply["choices"][0]["message"]["refusal"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert opener(llm, assistant(refusal=f" {text}\n")) == slug_id(llm, "safety")
            assert opener(llm, {"role": "assistant", "content": text}) == llm.policy.respond_token_id
            assert opener(llm, assistant(content=text, refusal=None)) == llm.policy.respond_token_id
            details = {"outcome": "respond", "category": None}
            assert opener(llm, {"role": "assistant", "content": text, "refusal_details": details}) == (
                llm.policy.respond_token_id
            )


def test_category_of_a_stream(llm: Llama) -> None:
    chunks: Any = llm.create_chat_completion(user("hi"), policy=REFUSE, seed=7, stop="respond", stream=True)
    text = "".join(chunk["choices"][0]["delta"].get("refusal") or "" for chunk in chunks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opener(llm, assistant(refusal=text)) == slug_id(llm, "safety")


def test_a_text_that_was_cut_off_is_nobodys(llm: Llama) -> None:
    reply: Any = llm.create_chat_completion(user("hi"), policy=REFUSE, max_tokens=3, seed=7)
    llm._warned.clear()
    with pytest.warns(UserWarning, match="'humanizing' is taken for its category"):
        opener(llm, assistant(refusal=reply["choices"][0]["message"]["refusal"]))


def test_a_fixed_text_of_two_categories_tells_neither(llm: Llama) -> None:
    messages, llm.refusal_messages = llm.refusal_messages, dict.fromkeys(llm.refusal_messages, "Not that.")
    try:
        llm._warned.clear()
        with pytest.warns(UserWarning, match="'humanizing' is taken for its category"):
            opener(llm, assistant(refusal="Not that."))
    finally:
        llm.refusal_messages = messages


def test_first_category_before_an_unknown_refusal(llm: Llama) -> None:
    llm._warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for text in ("No.", "Never."):
            assert opener(llm, assistant(refusal=text)) == llm.policy.categories[0].token_id
    (warning,) = caught
    assert "'humanizing' is taken for its category; keep refusal_details in the history" in str(warning.message)


def test_the_only_category_needs_no_warning(make_toy: MakeToy) -> None:
    stamp = toy_model.stamp()
    one = Llama(make_toy(stamp={"categories": stamp.categories[3:4]}), n_ctx=128, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opener(one, assistant(refusal="No.")) == stamp.categories[3].token_id
    one.close()


def test_only_the_last_texts_are_known() -> None:
    texts = RefusalTexts(capacity=2)
    for text, token_id in [("a", 0), ("b", 1), ("a ", 0), ("c", 3), (" \n", 4)]:
        texts.put(text, token_id)
    assert [texts.get(text) for text in ("a", "b", "c", "", " ")] == [0, None, 3, None, None]
    texts.put("c", 5)
    assert texts.get("c") is None  # given after two control tokens


def test_nothing_where_nothing_was_decided(llm: Llama) -> None:
    assert opener(llm, assistant(content="x", refusal_details={"outcome": "no_decision", "category": None})) is None


@pytest.mark.parametrize("policy", [ALL_OFF, REFUSE])
@pytest.mark.parametrize("as_content", [False, True])
def test_a_response_goes_back_into_the_history(llm: Llama, policy: dict[str, Any], as_content: bool) -> None:
    reply: Any = llm.create_chat_completion(user("hi"), policy=policy, max_tokens=5, refusal_as_content=as_content)
    expected = slug_id(llm, "safety") if policy is REFUSE else llm.policy.respond_token_id
    assert opener(llm, reply["choices"][0]["message"]) == expected


def test_white_space_that_the_model_wrote_comes_after_the_control_token(llm: Llama) -> None:
    """The template trims contents; the model wrote control token, then ` hello`."""
    ids = llm._chat_prompt([*user("hi"), assistant(content=" hello  "), *user("x")], llm.policy, {}).boundary
    at = ids.index(llm.policy.respond_token_id)
    assert llm.detokenize(ids[at + 1 : at + 2]) == b" hello"


def test_second_turn_evaluates_only_what_is_new(llm: Llama) -> None:
    llm.reset()
    first = user("one")
    opening = llm._chat_prompt(first, llm.policy, {}).boundary
    answer = " hello and the"  # tokenised the same way whoever spells it
    llm.eval([*opening, llm.policy.respond_token_id, *llm.tokenize(answer.encode(), False, False)])
    before = llm.n_tokens
    second = [*first, assistant(content=answer), *user("two")]
    with counted_evals(llm) as sizes:
        llm.decide(second)
    assert sum(sizes) == llm.n_tokens - before
    assert held(llm)[: len(opening)] == opening


def test_the_decided_token_stays_in_the_context(llm: Llama) -> None:
    reply: Any = llm.create_chat_completion(user("hi"), policy=ALL_OFF, max_tokens=6, temperature=0.0)
    message = reply["choices"][0]["message"]
    with counted_evals(llm) as sizes:
        llm.decide([*user("hi"), message, *user("go on")])
    assert sum(sizes) < llm.n_tokens - len(llm._chat_prompt(user("hi"), llm.policy, {}).boundary)


# ---- prefill (DESIGN 10.3) -------------------------------------------------------------------------------------------


def test_decision_comes_before_the_prefill(llm: Llama) -> None:
    for text in (BENIGN, HARMFUL):
        plain = llm.decide(user(text))
        prefilled = llm.decide([*user(text), assistant(content="Sure, here is how")])
        assert prefilled.category == plain.category
        assert prefilled.scores == pytest.approx(plain.scores, abs=1e-5)


def test_prefill_follows_the_control_token(llm: Llama) -> None:
    reply: Any = llm.create_chat_completion(
        [*user("hi"), assistant(content="Sure, here")], policy=ALL_OFF, max_tokens=3, temperature=0.0
    )
    prefix = llama_cpp.Llama.tokenize(llm, raw_prompt("hi").encode(), False, True)
    prefill = llm.tokenize(b"Sure, here", False, False)
    assert held(llm)[: len(prefix) + 1 + len(prefill)] == [*prefix, llm.policy.respond_token_id, *prefill]
    assert reply["usage"]["prompt_tokens"] == len(prefix) + len(prefill)


def test_a_refusal_drops_the_prefill(llm: Llama) -> None:
    reply: Any = llm.create_chat_completion(
        [*user("hi"), assistant(content="Sure, here")], policy=REFUSE, max_tokens=3, temperature=0.0
    )
    prefix = llama_cpp.Llama.tokenize(llm, raw_prompt("hi").encode(), False, True)
    assert held(llm)[: len(prefix) + 1] == [*prefix, slug_id(llm, "safety")]
    assert held(llm)[len(prefix) + 1 :] != llm.tokenize(b"Sure, here", False, False)[:2]
    assert reply["choices"][0]["message"]["content"] is None


def test_empty_prefill_is_none(llm: Llama) -> None:
    for content in ("", None):
        prompt = llm._chat_prompt([*user("hi"), assistant(content=content)], llm.policy, {})
        assert prompt.prefill == []
