"""`create_chat_completion`: OpenAI's shape, refusals in every mode, streaming, usage, grammar and tools."""

from __future__ import annotations

import json
from typing import Any

import llama_cpp
import pytest
from helpers import ALL_OFF, BENIGN, HARMFUL, REFUSE, counted_evals, held, raw_prompt, text_of, user
from toy_model import CONTROL, MakeToy

from refusal_edge import Llama, RefusedError
from refusal_edge.errors import InvalidRequestError, PromptTooLongError

JSON_GRAMMAR = 'root ::= "{" [a-z]* "}"'


def complete(llm: Llama, text: str = BENIGN, **arguments: Any) -> dict[str, Any]:
    return dict(llm.create_chat_completion(user(text), **{"max_tokens": 8, "seed": 1, **arguments}))  # type: ignore


def message_of(response: dict[str, Any]) -> dict[str, Any]:
    return dict(response["choices"][0]["message"])


def test_an_answer(llm: Llama) -> None:
    response = complete(llm)
    message = message_of(response)
    assert isinstance(message["content"], str)
    assert message["content"]
    assert message["refusal"] is None
    assert response["refusal_details"]["outcome"] == "respond"
    assert message["refusal_details"] == response["refusal_details"]
    assert response["refusal_details"] == llm.decide(user(BENIGN)).to_dict() | {
        "scores": pytest.approx(response["refusal_details"]["scores"], abs=1e-5),
        "respond_score": pytest.approx(response["refusal_details"]["respond_score"], abs=1e-5),
        "control_mass": pytest.approx(response["refusal_details"]["control_mass"], abs=1e-5),
    }


def test_a_refusal(llm: Llama) -> None:
    response = complete(llm, HARMFUL)
    message = message_of(response)
    assert message["content"] is None
    assert isinstance(message["refusal"], str)
    assert message["refusal"]
    assert response["refusal_details"]["category"] == "safety"
    assert response["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("policy", [ALL_OFF, REFUSE])
def test_usage(llm: Llama, policy: dict[str, Any]) -> None:
    usage = complete(llm, policy=policy, max_tokens=8, logit_bias=dict.fromkeys(_ends(llm), -100))["usage"]
    prompt = llama_cpp.Llama.tokenize(llm, raw_prompt(BENIGN).encode(), False, True)
    assert usage == {"prompt_tokens": len(prompt), "completion_tokens": 8, "total_tokens": len(prompt) + 8}


def _ends(llm: Llama) -> list[int]:
    return [i for i in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(llm._model.vocab, i)]


def test_one_token_is_the_control_token(llm: Llama) -> None:
    for policy in (ALL_OFF, REFUSE):
        response = complete(llm, policy=policy, max_tokens=1)
        assert text_of(response) == ""
        assert response["choices"][0]["finish_reason"] == "length"
        assert response["usage"]["completion_tokens"] == 1


def test_the_answer_goes_on_from_the_control_token(llm: Llama) -> None:
    """The same text as stock llama-cpp-python writes after the prompt and the control token."""
    for policy, slug in ((ALL_OFF, "respond"), (REFUSE, "safety")):
        ids = llama_cpp.Llama.tokenize(llm, raw_prompt(BENIGN).encode(), False, True)
        token = llm.policy.respond_token_id if slug == "respond" else llm.policy.category(slug).token_id
        response = complete(llm, policy=policy, max_tokens=12, temperature=0.0)
        stock = llama_cpp.Llama(llm.model_path, n_ctx=512, verbose=False)
        bias = dict.fromkeys(llm.policy.control_token_ids, -1e9)
        expected: Any = stock.create_completion([*ids, token], max_tokens=11, temperature=0.0, logit_bias=bias)
        assert text_of(response) == expected["choices"][0]["text"]
        stock.close()


@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    "chain", [{}, {"top_k": 5}, {"top_p": 0.5}, {"repeat_penalty": 1.3}, {"mirostat_mode": 2}, {"typical_p": 0.7}]
)
def test_sampling_is_llama_cpps(llm: Llama, temperature: float, chain: dict[str, Any]) -> None:
    """Same seed, same chain, same ids as stock sampling over logits without the control tokens."""
    arguments: dict[str, Any] = {"max_tokens": 12, "temperature": temperature, "seed": 11, **chain}
    ours = complete(llm, policy=ALL_OFF, **{**arguments, "max_tokens": 13})
    ids = [*llama_cpp.Llama.tokenize(llm, raw_prompt(BENIGN).encode(), False, True), llm.policy.respond_token_id]
    stock = llama_cpp.Llama(llm.model_path, n_ctx=512, verbose=False)
    bias = dict.fromkeys(llm.policy.control_token_ids, -1e9)
    theirs: Any = stock.create_completion(ids, logit_bias=bias, **{"repeat_penalty": 1.0, **arguments})
    assert text_of(ours) == theirs["choices"][0]["text"]
    stock.close()


def test_message_mode_generates_nothing(llm: Llama) -> None:
    prompt = llama_cpp.Llama.tokenize(llm, raw_prompt(HARMFUL).encode(), False, True)
    llm.reset()
    with counted_evals(llm) as sizes:
        response = complete(llm, HARMFUL, on_refuse="message")
    assert sizes == [len(prompt)]
    assert held(llm) == prompt
    assert message_of(response)["refusal"] == llm.refusal_messages["safety"]
    assert message_of(response)["content"] is None
    assert response["choices"][0]["finish_reason"] == "stop"
    assert response["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 0,
        "total_tokens": len(prompt),
    }


def test_message_can_be_changed(llm: Llama) -> None:
    before = dict(llm.refusal_messages)
    llm.refusal_messages["safety"] = "Nope."
    try:
        assert message_of(complete(llm, HARMFUL, on_refuse="message"))["refusal"] == "Nope."
    finally:
        llm.refusal_messages = before


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "refusal_messages: expected an object of category -> text, got None"),
        (["no"], "refusal_messages: expected an object"),
        ({"saftey": "No."}, "refusal_messages: unknown category 'saftey': this model has humanizing, "),
        ({"safety": None}, "refusal_messages: safety: expected a text that is not empty, got None"),
        ({"safety": 5}, "refusal_messages: safety: expected a text that is not empty, got 5"),
        ({"safety": " "}, "refusal_messages: safety: expected a text"),
        ({"safety": "\ud800"}, "refusal_messages: safety: expected a text"),
    ],
)
def test_messages_that_are_none(llm: Llama, messages: Any, message: str) -> None:
    before = llm.refusal_messages
    with pytest.raises(InvalidRequestError, match=message):
        llm.refusal_messages = messages
    assert llm.refusal_messages is before


def test_messages_are_a_copy_and_checked_again_when_used(llm: Llama) -> None:
    before, mine = llm.refusal_messages, {"safety": "No."}
    llm.refusal_messages = mine
    try:
        mine["safety"] = "Yes."
        assert message_of(complete(llm, policy=REFUSE, on_refuse="message"))["refusal"] == "No."
        llm.refusal_messages["safety"] = 5  # type: ignore[assignment]
        for mode in ("message", "generate"):
            with pytest.raises(InvalidRequestError, match="refusal_messages: safety: expected a text"):
                complete(llm, policy=REFUSE, on_refuse=mode)
    finally:
        llm.refusal_messages = before


NO_DECISION = {"min_control_mass": 1.0}


@pytest.mark.parametrize("mode", ["generate", "message", "raise"])
def test_no_decision_is_answered(llm: Llama, mode: str) -> None:
    message = message_of(complete(llm, HARMFUL, policy=NO_DECISION, on_refuse=mode))
    assert message["refusal_details"]["outcome"] == "no_decision"
    assert message["refusal"] is None
    assert message["content"]


@pytest.mark.parametrize("mode", ["generate", "message", "raise"])
def test_no_decision_is_refused_where_the_fallback_says_so(llm: Llama, mode: str) -> None:
    policy = {**NO_DECISION, "fallback": "refuse"}
    if mode == "raise":
        with pytest.raises(RefusedError):
            complete(llm, HARMFUL, policy=policy, on_refuse=mode)
        return
    message = message_of(complete(llm, HARMFUL, policy=policy, on_refuse=mode))
    assert message["refusal_details"]["outcome"] == "no_decision"
    assert message["refusal"]
    assert message["content"] is None


def test_message_mode_answers_what_is_not_refused(llm: Llama) -> None:
    assert message_of(complete(llm, BENIGN, on_refuse="message"))["refusal"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_raise_mode(llm: Llama, stream: bool) -> None:
    with pytest.raises(RefusedError, match=r"category 'safety' scored 0\.\d+|category 'safety' scored 1") as caught:
        complete(llm, HARMFUL, on_refuse="raise", stream=stream)
    assert caught.value.decision.category == "safety"
    assert message_of(complete(llm, BENIGN, on_refuse="raise"))["refusal"] is None


def test_refusal_as_content(llm: Llama) -> None:
    message = message_of(complete(llm, HARMFUL, refusal_as_content=True))
    assert message["content"] == message["refusal"]
    assert message["refusal"]


def test_seed_and_temperature_never_change_a_decision(llm: Llama) -> None:
    outcomes = {
        complete(llm, text, seed=seed, temperature=2.0, max_tokens=2)["refusal_details"]["token_id"]
        for text in (BENIGN,)
        for seed in range(12)
    }
    assert outcomes == {llm.policy.respond_token_id}


# ---- streams ---------------------------------------------------------------------------------------------------------


def chunks_of(llm: Llama, text: str, **arguments: Any) -> list[dict[str, Any]]:
    return list(llm.create_chat_completion(user(text), **{"max_tokens": 8, "seed": 1, "stream": True, **arguments}))  # type: ignore


@pytest.mark.parametrize("mode", ["generate", "message"])
@pytest.mark.parametrize("text", [BENIGN, HARMFUL])
def test_a_stream_says_what_the_response_says(llm: Llama, text: str, mode: str) -> None:
    whole = message_of(complete(llm, text, on_refuse=mode))
    chunks = chunks_of(llm, text, on_refuse=mode)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert deltas[0]["refusal"] is None
    for key in ("content", "refusal"):
        spelled = "".join(delta.get(key) or "" for delta in deltas)
        assert spelled == (whole[key] or "")
    assert chunks[0]["refusal_details"]["category"] == whole["refusal_details"]["category"]
    assert chunks[-1]["refusal_details"]["category"] == whole["refusal_details"]["category"]
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_stream_with_refusal_as_content(llm: Llama) -> None:
    deltas = [c["choices"][0]["delta"] for c in chunks_of(llm, HARMFUL, refusal_as_content=True)]
    assert "".join(d.get("content") or "" for d in deltas) == "".join(d.get("refusal") or "" for d in deltas) != ""


def test_streams_of_two_requests_keep_their_decisions(llm: Llama) -> None:
    """Upstream cannot interleave token by token, but a stream that is not begun must not take another's decision."""
    waiting: Any = llm.create_chat_completion(user(HARMFUL), stream=True, max_tokens=4, seed=1)
    complete(llm, BENIGN)
    deltas = [chunk["choices"][0]["delta"] for chunk in waiting]
    assert any(delta.get("refusal") for delta in deltas)
    assert not any(delta.get("content") for delta in deltas)


# ---- OpenAI's own types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["generate", "message"])
@pytest.mark.parametrize("text", [BENIGN, HARMFUL])
def test_openai_types(llm: Llama, text: str, mode: str) -> None:
    chat = pytest.importorskip("openai.types.chat", reason="needs the openai client")
    parsed = chat.ChatCompletion.model_validate(complete(llm, text, on_refuse=mode), strict=True)
    message = parsed.choices[0].message
    assert (message.refusal is None) is (text == BENIGN)
    assert parsed.refusal_details["outcome"] == ("respond" if text == BENIGN else "refuse")
    chunks = [chat.ChatCompletionChunk.model_validate(c, strict=True) for c in chunks_of(llm, text, on_refuse=mode)]
    assert "".join(chunk.choices[0].delta.refusal or "" for chunk in chunks) == (message.refusal or "")


def test_openai_v1_method(llm: Llama) -> None:
    pytest.importorskip("openai", reason="needs the openai client")
    response: Any = llm.create_chat_completion_openai_v1(messages=user(HARMFUL), max_tokens=4)
    assert response.choices[0].message.refusal
    assert response.choices[0].message.content is None
    stream: Any = llm.create_chat_completion_openai_v1(messages=user(HARMFUL), max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].delta.refusal or "" for chunk in stream)


# ---- grammar, response format, tools, stop ---------------------------------------------------------------------------


def test_grammar_holds_for_answers_and_is_dropped_for_refusals(llm: Llama) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string(JSON_GRAMMAR, verbose=False)
    answer = text_of(complete(llm, policy=ALL_OFF, grammar=grammar, max_tokens=30))
    assert answer.startswith("{")
    refusal = text_of(complete(llm, policy=REFUSE, grammar=grammar, max_tokens=30))
    assert refusal
    assert not refusal.startswith("{")


def test_response_format_is_dropped_for_refusals(llm: Llama) -> None:
    wanted = {"type": "json_object"}
    assert text_of(complete(llm, policy=ALL_OFF, response_format=wanted, max_tokens=20))[0] == "{"
    assert text_of(complete(llm, policy=REFUSE, response_format=wanted, max_tokens=20))[0] != "{"


def test_tool_call_or_refusal(llm: Llama) -> None:
    schema = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": "pick", "description": "picks", "parameters": schema}}]
    choice = {"type": "function", "function": {"name": "pick"}}
    response = complete(llm, policy=ALL_OFF, tools=tools, tool_choice=choice, max_tokens=60, temperature=0.0)
    message = message_of(response)
    assert message["refusal"] is None
    assert message["tool_calls"][0]["function"]["name"] == "pick"
    assert message["tool_calls"][0]["function"]["arguments"].lstrip().startswith("{")
    refused = message_of(complete(llm, policy=REFUSE, tools=tools, tool_choice=choice))
    assert refused["refusal"]
    assert "tool_calls" not in refused


def test_stop_strings(llm: Llama) -> None:
    whole = text_of(complete(llm, temperature=0.0, max_tokens=12))
    stop = whole[3]
    assert text_of(complete(llm, temperature=0.0, max_tokens=12, stop=stop)) == whole.split(stop)[0]


def test_prompt_and_answer_must_fit(make_toy: MakeToy, llm: Llama) -> None:
    small = Llama(llm.model_path, n_ctx=32, verbose=False)
    n_ctx = 32
    n_prompt = len(small._chat_prompt(user("a"), small.policy, {}).boundary)
    longest = "a" + " b" * (n_ctx - n_prompt)
    while len(small._chat_prompt(user(longest), small.policy, {}).boundary) > n_ctx - 2:
        longest = longest[:-2]
    assert small.decide(user(longest))
    assert message_of(complete(small, longest))["refusal_details"]
    n_longer = len(small._chat_prompt(user(longest + " b b b"), small.policy, {}).boundary)
    with pytest.raises(
        PromptTooLongError,
        match=f"prompt: {n_longer} tokens, with 2 for the beginning of the answer, do not fit the context of {n_ctx}:",
    ):
        complete(small, longest + " b b b")
    small.close()


def test_a_prompt_that_leaves_no_room_for_its_answer(llm: Llama) -> None:
    """The message counts the tokens of the prompt, and says what else must fit."""
    ids = [5] * llm.n_ctx()
    with pytest.raises(PromptTooLongError, match="512 tokens, with 1 for the beginning of the answer, do not fit"):
        llm.create_completion(ids)
    with pytest.raises(PromptTooLongError, match="prompt: 513 tokens do not fit the context of 512"):
        next(llm.generate([*ids, 5]))
    assert llm.create_completion(ids[:-1], max_tokens=4)


# ---- logprobs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [BENIGN, HARMFUL])
def test_logprobs_hold_no_control_text(toy_path: Any, text: str) -> None:
    llm = Llama(toy_path, n_ctx=256, logits_all=True, verbose=False)
    arguments: dict[str, Any] = {"logprobs": True, "top_logprobs": 20, "max_tokens": 6}
    response = complete(llm, text, **arguments)
    logprobs = response["choices"][0]["logprobs"]
    entries = logprobs["content"] if text == BENIGN else logprobs["refusal"]
    assert "".join(entry["token"] for entry in entries) == text_of(response)
    streamed = chunks_of(llm, text, **arguments)
    for spelled in (json.dumps(response), json.dumps(streamed)):
        assert not any(control.strip() in spelled for control in CONTROL.values())
    best = max(entries[0]["top_logprobs"], key=lambda entry: entry["logprob"])
    assert best["logprob"] <= 0
    llm.close()


def test_text_never_holds_a_control_token(any_llm: Llama) -> None:
    for text in (BENIGN, HARMFUL):
        spelled = json.dumps([complete(any_llm, text), chunks_of(any_llm, text)])
        assert not any(control.strip() in spelled for control in CONTROL.values())


def test_guard_keeps_control_tokens_out_mid_answer(llm: Llama) -> None:
    """With `\\n\\n` banned from nothing, the toy would write control tokens at once after one; GUARD masks them."""
    newline = llama_cpp.Llama.tokenize(llm, b"\n\n", False, False)[0]
    response = complete(llm, policy=ALL_OFF, logit_bias={newline: 30.0}, max_tokens=20, temperature=1.5)
    assert text_of(response).count("\n\n") > 3  # each of them a place where the model wants a control token
    control = [i for i in held(llm) if i in llm.policy.control_token_ids]
    assert control == [llm.policy.respond_token_id]


def test_an_unknown_mode(llm: Llama) -> None:
    with pytest.raises(InvalidRequestError, match="on_refuse: expected one of generate, message, raise, got 'shout'"):
        complete(llm, on_refuse="shout")
