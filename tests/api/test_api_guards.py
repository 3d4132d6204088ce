"""DESIGN 10, point 4: parameters that would reach a control token, or would trip llama.cpp."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np
import pytest
from helpers import ALL_OFF, BENIGN, held, raw_prompt, user

from refusal_edge import Llama, RefusalEdgeError
from refusal_edge.errors import InvalidRequestError

pytestmark = pytest.mark.filterwarnings("ignore:Detected duplicate leading:RuntimeWarning")


def both_ways(llm: Llama, **arguments: Any) -> list[Any]:
    """The chat completion and, for those parameters that it has, the raw completion, as functions."""
    calls = [lambda: llm.create_chat_completion(user("hi"), max_tokens=2, **arguments)]
    if not {"tools", "tool_choice", "response_format", "functions"} & set(arguments):
        calls.append(lambda: llm.create_completion(raw_prompt("hi"), max_tokens=2, **arguments))
    return calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop": [" [respond]"]}, r"stop: may not hold the control token '\[respond\]'"),
        ({"stop": "x[respond]y"}, r"stop: may not hold"),
        ({"response_format": {"type": "json_object", "schema": {"enum": ["[respond]"]}}}, "response_format: may not"),
        ({"tools": [], "tool_choice": {"function": {"name": "[respond]"}}}, "tool_choice: expected one of"),
        ({"logit_bias": {"x": 1}}, "logit_bias: expected token id -> number"),
        ({"logit_bias": {10**6: 1}}, r"logit_bias: expected token ids in \[0, "),
        ({"logit_bias": [1]}, "logit_bias: expected an object"),
        ({"grammar": "root ::= [a-z]"}, "grammar: expected a LlamaGrammar, got str"),
        ({"temperature": float("nan")}, "temperature: expected a finite number, got nan"),
        ({"top_p": "high"}, "top_p: expected a finite number, got 'high'"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"stop": [""]}, "stop: expected"),
        ({"stop": [3]}, "stop: expected"),
        ({"tools": "search"}, "tools: expected a list of objects, got str"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\]: expected an object with 'function'"),
        ({"tools": [{"function": {"name": 3}}]}, r"tools\[0\].function: expected a name"),
        ({"tool_choice": 7}, "tool_choice: expected"),
        ({"response_format": "json"}, "response_format: expected an object"),
    ],
)
def test_refused_parameters(llm: Llama, arguments: dict[str, Any], message: str) -> None:
    for call in both_ways(llm, **arguments):
        with pytest.raises(InvalidRequestError, match=message):
            call()


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
