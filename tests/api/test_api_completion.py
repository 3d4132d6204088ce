"""Raw `create_completion`, `__call__` and `generate`: decided at the prompt's end, no trace of control tokens."""

from __future__ import annotations

import json
from typing import Any

import llama_cpp
import numpy as np
import pytest
from helpers import ALL_OFF, BENIGN, HARMFUL, REFUSE, held, raw_prompt, user
from toy_model import CONTROL

from refusal_edge import Llama, RefusedError
from refusal_edge.errors import InvalidRequestError, PromptTooLongError

pytestmark = pytest.mark.filterwarnings("ignore:Detected duplicate leading:RuntimeWarning")  # the prompts write BOS


def boundary(text: str) -> str:
    return raw_prompt(text).removeprefix("<|begin_of_text|>")  # llama-cpp-python adds it


def complete(llm: Llama, prompt: Any, **arguments: Any) -> dict[str, Any]:
    return dict(llm.create_completion(prompt, **{"max_tokens": 8, "seed": 1, **arguments}))  # type: ignore


def test_decision_at_the_boundary(llm: Llama) -> None:
    for text, outcome in ((BENIGN, "respond"), (HARMFUL, "refuse")):
        response = complete(llm, boundary(text))
        assert response["refusal_details"]["outcome"] == outcome
        expected = llm.decide(user(text)).scores
        assert response["refusal_details"]["scores"] == pytest.approx(expected, abs=1e-5)


def test_no_boundary_no_decision(llm: Llama) -> None:
    response = complete(llm, "hello")
    assert response["refusal_details"]["outcome"] == "no_decision"
    assert response["refusal_details"]["token_id"] is None
    assert response["choices"][0]["text"]
    assert set(held(llm)).isdisjoint(llm.policy.control_token_ids)


@pytest.mark.parametrize("as_ids", [False, True])
def test_text_goes_on_from_the_control_token(llm: Llama, as_ids: bool) -> None:
    prompt: Any = boundary(BENIGN)
    ids = llama_cpp.Llama.tokenize(llm, prompt.encode(), True, True)
    response = complete(llm, ids if as_ids else prompt, policy=REFUSE, temperature=0.0, max_tokens=9)
    stock = llama_cpp.Llama(llm.model_path, n_ctx=512, verbose=False)
    bias = dict.fromkeys(llm.policy.control_token_ids, -1e9)
    token = llm.policy.category("safety").token_id
    theirs: Any = stock.create_completion([*ids, token], temperature=0.0, max_tokens=8, logit_bias=bias)
    assert response["choices"][0]["text"] == theirs["choices"][0]["text"]
    assert response["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 9, "total_tokens": len(ids) + 9}
    stock.close()


def test_without_a_decision_the_text_is_llama_cpp_pythons(llm: Llama) -> None:
    stock = llama_cpp.Llama(llm.model_path, n_ctx=512, verbose=False)
    bias = dict.fromkeys(llm.policy.control_token_ids, -1e9)
    for arguments in ({"temperature": 0.0}, {"seed": 5, "temperature": 1.0}):
        ours = complete(llm, "hello", **arguments)
        theirs: Any = stock.create_completion("hello", max_tokens=8, logit_bias=bias, **{"seed": 1, **arguments})
        assert ours["choices"] == theirs["choices"]
        assert ours["usage"] == theirs["usage"]
    stock.close()


def test_call_is_create_completion(llm: Llama) -> None:
    called: Any = llm(boundary(BENIGN), max_tokens=8, seed=1, policy=REFUSE)
    assert called["choices"] == complete(llm, boundary(BENIGN), policy=REFUSE)["choices"]


@pytest.mark.parametrize("policy", [ALL_OFF, REFUSE, {}])
@pytest.mark.parametrize("prompt", [boundary(BENIGN), "hello"])
def test_stream(llm: Llama, prompt: str, policy: dict[str, Any]) -> None:
    whole = complete(llm, prompt, policy=policy, temperature=0.0)
    chunks: Any = list(llm.create_completion(prompt, policy=policy, temperature=0.0, max_tokens=8, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    for chunk in (chunks[0], chunks[-1]):
        assert chunk["refusal_details"]["outcome"] == whole["refusal_details"]["outcome"]
    assert all(chunk["choices"][0]["text"] for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_message_and_raise(llm: Llama, stream: bool) -> None:
    with pytest.raises(RefusedError):
        list(complete(llm, boundary(HARMFUL), on_refuse="raise")) if not stream else list(
            llm.create_completion(boundary(HARMFUL), on_refuse="raise", stream=True)  # type: ignore
        )
    result: Any = llm.create_completion(boundary(HARMFUL), on_refuse="message", stream=stream)
    parts = list(result) if stream else [result]
    assert "".join(part["choices"][0]["text"] for part in parts) == llm.refusal_messages["safety"]
    assert parts[0]["refusal_details"]["category"] == "safety"
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    assert set(held(llm)).isdisjoint(llm.policy.control_token_ids)


def test_echo(llm: Llama) -> None:
    prompt = boundary(BENIGN)
    plain = complete(llm, prompt, policy=REFUSE, temperature=0.0)["choices"][0]["text"]
    assert complete(llm, prompt, policy=REFUSE, temperature=0.0, echo=True)["choices"][0]["text"] == prompt + plain


@pytest.mark.parametrize(("echo", "stream"), [(False, False), (True, False), (False, True)])
def test_logprobs(toy_path: Any, echo: bool, stream: bool) -> None:
    llm = Llama(toy_path, n_ctx=256, logits_all=True, verbose=False)
    for policy in (ALL_OFF, REFUSE):
        result: Any = llm.create_completion(
            boundary(BENIGN), policy=policy, max_tokens=6, logprobs=15, echo=echo, stream=stream, temperature=0.0
        )
        parts = list(result) if stream else [result]
        choices = [part["choices"][0] for part in parts]
        tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
        spelled = "".join(tokens)
        text = "".join(choice["text"] for choice in choices)
        assert spelled.endswith(text.removeprefix(boundary(BENIGN)))
        assert len(tokens) == 5 + (echo * (result["usage"]["prompt_tokens"] - 1) if not stream else 0)
        assert not any(control.strip() in json.dumps(parts, default=float) for control in CONTROL.values())
    llm.close()


def test_grammar_is_dropped_for_a_refusal(llm: Llama) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "{" [a-z]* "}"', verbose=False)
    assert complete(llm, boundary(BENIGN), policy=ALL_OFF, grammar=grammar)["choices"][0]["text"].startswith("{")
    assert not complete(llm, boundary(BENIGN), policy=REFUSE, grammar=grammar)["choices"][0]["text"].startswith("{")


def test_suffix_still_runs_and_is_decided(llm: Llama) -> None:
    response = complete(llm, "hello", suffix="world")
    assert response["refusal_details"]["outcome"] in ("no_decision", "respond", "refuse")


def test_generate_yields_the_control_token_first(llm: Llama) -> None:
    ids = llama_cpp.Llama.tokenize(llm, raw_prompt(HARMFUL).encode(), False, True)
    generated = llm.generate(ids, temp=0.0)
    first, second = next(generated), next(generated)
    generated.close()
    assert first == llm.policy.category("safety").token_id
    assert second not in llm.policy.control_token_ids
    assert held(llm) == [*ids, first]


def test_generate_without_reset_goes_on(llm: Llama) -> None:
    ids = llama_cpp.Llama.tokenize(llm, raw_prompt(HARMFUL).encode(), False, True)
    llm.reset()
    llm.eval(ids[:4])
    assert next(llm.generate(ids[4:], reset=False)) == llm.policy.category("safety").token_id


def test_paper_rule_gives_the_vocabularys_argmax_where_it_has_no_threshold(llm: Llama) -> None:
    """Off the boundary the rule's free argmax is an ordinary token; it opens the text."""
    policy = {"rule": "paper-category"}
    response = complete(llm, "Once upon a time", policy=policy, temperature=0.0)
    details = response["refusal_details"]
    assert details["outcome"] == "no_decision"
    assert details["token_id"] == details["model_token_id"]
    assert response["choices"][0]["text"].encode().startswith(llm.detokenize([details["token_id"]]))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "prompt: expected a string or token ids"),
        ([10**9], "prompt: expected"),
        ([-1], "prompt: expected"),
        (["a"], "prompt: expected"),
        (b"hello", "prompt: expected a string or token ids"),
        ([True, False], "prompt: expected a string or token ids"),
        ([1.0], "prompt: expected a string or token ids"),
        ("a\ud800", "lone surrogate"),
        ([], "at least one token"),
    ],
)
def test_bad_prompts(llm: Llama, prompt: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        complete(llm, prompt)


def test_numpy_ids(llm: Llama) -> None:
    ids = llama_cpp.Llama.tokenize(llm, raw_prompt(BENIGN).encode(), False, True)
    assert complete(llm, np.array(ids))["choices"] == complete(llm, ids)["choices"]


def test_prompt_too_long(llm: Llama) -> None:
    with pytest.raises(PromptTooLongError):
        complete(llm, "a b " * 600)
