"""DESIGN 10, point 4: parameters that would reach a control token, or would trip llama.cpp."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np
import pytest
from helpers import ALL_OFF, BENIGN, counted_evals, held, raw_prompt, user

from refusal_edge import Llama, RefusalEdgeError
from refusal_edge.errors import InvalidRequestError
from refusal_edge.sampling import check_grammar_size

pytestmark = pytest.mark.filterwarnings("ignore:Detected duplicate leading:RuntimeWarning")


def both_ways(llm: Llama, **changes: Any) -> list[Any]:
    """The chat completion and, for those parameters that it has, the raw completion, as functions."""
    arguments = {"max_tokens": 2, **changes}
    calls = [lambda: llm.create_chat_completion(user("hi"), **arguments)]
    if not {"tools", "tool_choice", "response_format", "functions"} & set(arguments):
        calls.append(lambda: llm.create_completion(raw_prompt("hi"), **arguments))
    return calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop": [" [respond]"]}, r"stop: may not hold the control token '\[respond\]'"),
        ({"stop": "x[respond]y"}, r"stop: may not hold"),
        ({"response_format": {"type": "json_object", "schema": {"enum": ["[respond]"]}}}, "response_format: may not"),
        ({"tools": [], "tool_choice": {"function": {"name": "[respond]"}}}, "tool_choice: expected one of"),
        ({"logit_bias": {"x": 1}}, "logit_bias: expected token id -> number, finite"),
        ({"logit_bias": {10**6: 1}}, r"logit_bias: expected token ids in \[0, "),
        ({"logit_bias": [1]}, "logit_bias: expected an object"),
        ({"grammar": "root ::= [a-z]"}, "grammar: expected a LlamaGrammar, got str"),
        ({"temperature": float("nan")}, "temperature: expected a finite number, got nan"),
        ({"top_p": "high"}, r"top_p: expected a number in \[0, 1\], got 'high'"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"stop": [""]}, "stop: expected"),
        ({"stop": [3]}, "stop: expected"),
        ({"tools": "search"}, "tools: expected a list of objects, got str"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\]: expected an object with 'function'"),
        ({"tools": [{"function": {"name": 3}}]}, r"tools\[0\].function: expected a name"),
        ({"tool_choice": 7}, "tool_choice: expected"),
        ({"response_format": "json"}, "response_format: expected an object"),
        ({"response_format": {"type": "banana"}}, "response_format.type: expected one of text, json_object"),
        ({"logit_bias": {"5": 10**400}}, "logit_bias: expected token id -> number, finite"),
        ({"logit_bias": {"5": float("nan")}}, "logit_bias: expected token id -> number, finite"),
        ({"logit_bias": {"5": float("inf")}}, "logit_bias: expected token id -> number, finite"),
        ({"logit_bias": {float("inf"): 1}}, "logit_bias: expected token id -> number, finite"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias: expected token id -> number, finite"),
        ({"temperature": 10**400}, "temperature: expected a finite number"),
        ({"presence_penalty": 1e308}, "presence_penalty: expected a finite number"),
        ({"seed": "x"}, "seed: expected an integer"),
        ({"seed": 1.5}, "seed: expected an integer"),
        ({"top_k": 1.5}, "top_k: expected an integer"),
        ({"max_tokens": 1.5}, "max_tokens: expected an integer"),
        ({"mirostat_mode": 7}, r"mirostat_mode: expected an integer in \[0, 2\], got 7"),
        ({"mirostat_mode": "x"}, "mirostat_mode: expected an integer"),
        ({"min_p": -1}, r"min_p: expected a number in \[0, 1\], got -1"),
        ({"top_p": 5}, r"top_p: expected a number in \[0, 1\], got 5"),
        ({"stop": "\ud800"}, "stop: expected Unicode text"),
        ({"logprobs": True}, "logprobs: got True, but they need a model loaded with logits_all=True"),
        ({"logprobs": "x"}, "logprobs: expected an integer"),
    ],
)
def test_refused_parameters(llm: Llama, arguments: dict[str, Any], message: str) -> None:
    for call in both_ways(llm, **arguments):
        with counted_evals(llm) as sizes, pytest.raises(InvalidRequestError, match=message):
            call()
        assert sizes == [] or "grammar" in arguments  # said before the prompt is read


def test_top_logprobs_out_of_range(llm: Llama) -> None:
    with pytest.raises(InvalidRequestError, match="top_logprobs: expected an integer"):
        llm.create_chat_completion(user("hi"), top_logprobs=-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logits_processor_that_gives_no_numbers(llm: Llama, value: float) -> None:
    def processor(ids: Any, scores: Any) -> Any:
        return np.full_like(scores, value)

    with pytest.raises(InvalidRequestError, match="logits_processor: gave NaN or infinity"):
        llm.create_chat_completion(user(BENIGN), policy=ALL_OFF, max_tokens=4, logits_processor=processor)


def test_a_logits_processor_that_fails(llm: Llama) -> None:
    def processor(ids: Any, scores: Any) -> Any:
        raise KeyError("no such token")

    with pytest.raises(InvalidRequestError, match="logits_processor: KeyError"):
        llm.create_chat_completion(user(BENIGN), policy=ALL_OFF, max_tokens=4, logits_processor=processor)


def test_a_grammar_that_would_overflow_the_stack(llm: Llama) -> None:
    sources = {
        "nested groups": "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000,
        "characters": 'root ::= "' + "a" * 100_000 + '"',
        "NUL": 'root ::= "a\0"',
    }
    for message, source in sources.items():
        for call in both_ways(llm, grammar=llama_cpp.LlamaGrammar.from_string(source), policy=ALL_OFF):
            with pytest.raises(InvalidRequestError, match=f"grammar: .*{message}"):
                call()


def test_a_grammar_within_the_bounds(llm: Llama) -> None:
    literal = 'root ::= "(((" [(] ' + "(" * 250 + '"a"' + ")" * 250
    reply: Any = llm.create_chat_completion(
        user("hi"), policy=ALL_OFF, max_tokens=9, grammar=llama_cpp.LlamaGrammar.from_string(literal)
    )
    assert "((((a".startswith(reply["choices"][0]["message"]["content"])
    check_grammar_size('root ::= "' + "(" * 1000 + '" [' + "(" * 1000 + "]")


def test_logit_bias_on_each_control_token(llm: Llama) -> None:
    for token_id in llm.policy.control_token_ids:
        for key in (token_id, str(token_id)):
            for call in both_ways(llm, logit_bias={key: 100}):
                with pytest.raises(ValueError, match=f"logit_bias: token {token_id} is the control token"):
                    call()


def test_grammar_that_names_a_control_token(llm: Llama) -> None:
    by_id = f"root ::= <[{llm.policy.respond_token_id}]> [a-z]*"
    for source, message in ((by_id, r"is the control token ' \[respond\]'"), ('root ::= " [respond]"', "may not hold")):
        grammar = llama_cpp.LlamaGrammar.from_string(source, verbose=False)
        for call in both_ways(llm, grammar=grammar):
            with pytest.raises(InvalidRequestError, match=message):
                call()


def test_grammar_that_llama_cpp_cannot_parse(llm: Llama) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string("root ::= (", verbose=False)
    for call in both_ways(llm, grammar=grammar, policy=ALL_OFF):
        with pytest.raises(InvalidRequestError, match=r"grammar: llama\.cpp cannot parse it"):
            call()


def test_logit_bias_still_works(llm: Llama) -> None:
    token = llama_cpp.Llama.tokenize(llm, b"Q", False, False)[0]
    response: Any = llm.create_chat_completion(user(BENIGN), policy=ALL_OFF, max_tokens=5, logit_bias={str(token): 100})
    assert response["choices"][0]["message"]["content"] == "QQQQ"


def test_logits_processor_sees_masked_control_tokens(llm: Llama) -> None:
    seen: list[Any] = []

    def processor(ids: Any, scores: Any) -> Any:
        seen.append(np.array(scores[list(llm.policy.control_token_ids)]))
        return scores

    processors = llama_cpp.LogitsProcessorList([processor])
    llm.create_chat_completion(user(BENIGN), policy=ALL_OFF, max_tokens=4, logits_processor=processors)
    assert len(seen) == 3
    assert all(np.isneginf(row).all() for row in seen)


def test_a_logits_processor_that_raises_a_control_token_fails_closed(llm: Llama) -> None:
    def processor(ids: Any, scores: Any) -> Any:
        scores[llm.policy.respond_token_id] = 1e9
        return scores

    processors = llama_cpp.LogitsProcessorList([processor])
    with pytest.raises(RefusalEdgeError, match="control token"):
        llm.create_chat_completion(user(BENIGN), policy=ALL_OFF, max_tokens=4, logits_processor=processors)
    llm.create_chat_completion(user(BENIGN), max_tokens=2)  # and the instance goes on working
    assert held(llm)
