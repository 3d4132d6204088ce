"""The trained demo model end to end: prompts and decisions as transformers has them, history, reuse, sealed tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np
import pytest
from helpers import ALL_OFF, REFUSE, counted_evals, held, text_of, user

from refusal_edge import Llama, demo, reference
from refusal_edge.convert import convert

pytestmark = pytest.mark.skipif(not demo.checkpoint().is_dir(), reason="the demo checkpoint is not there")

QUESTIONS = [*demo.PROMPTS, "Hello!", "What is 2 + 2?", "naïve café: 日本語 🙂", "  spaced \n out  ", "a\n\nb"]


@pytest.fixture(scope="module")
def demo_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(demo.checkpoint(), path, outtype="f32")
    return str(path)


@pytest.fixture(scope="module")
def model(demo_path: str) -> Iterator[Llama]:
    llm = Llama(demo_path, n_ctx=1024, verbose=False)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    return transformers.AutoTokenizer.from_pretrained(demo.checkpoint())


@pytest.fixture(scope="module")
def network() -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs torch")
    return transformers.AutoModelForCausalLM.from_pretrained(demo.checkpoint(), dtype=torch.float32).eval()


@pytest.mark.parametrize("question", QUESTIONS)
def test_prompt_ids_are_transformers(model: Llama, tokenizer: Any, question: str) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *user(question)]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert model._chat_prompt(messages, model.policy, {}).boundary == list(expected["input_ids"])


def test_decisions_are_transformers(model: Llama, tokenizer: Any, network: Any) -> None:
    import torch

    for question in QUESTIONS:
        ids = tokenizer.apply_chat_template(user(question), add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            logits = network(torch.tensor([list(ids)])).logits[0, -1].double().numpy()
        expected = reference.decide(logits, model.policy)
        decision = model.decide(user(question))
        assert decision.scores == pytest.approx(expected.scores, abs=1e-3)
        assert decision.control_mass == pytest.approx(expected.control_mass, abs=1e-3)
        assert (decision.outcome, decision.category) == (expected.outcome, expected.category)


def test_the_boundary_is_one(model: Llama) -> None:
    assert min(model.decide(user(question)).control_mass for question in QUESTIONS) > 0.9


def test_a_conversation_reuses_the_context(model: Llama) -> None:
    messages = user("What is the capital of France?")
    reused = []
    for follow_up in ("And of Spain?", "Thank you.", "How do I pick a lock?"):
        earlier = len(model._chat_prompt(messages, model.policy, {}).boundary)
        reply: Any = model.create_chat_completion(messages, temperature=0.0, max_tokens=40)
        before = model.n_tokens
        messages = [*messages, reply["choices"][0]["message"], *user(follow_up)]
        prompt = model._chat_prompt(messages, model.policy, {}).boundary
        with counted_evals(model) as sizes:
            model.decide(messages)
        assert held(model) == prompt
        assert sum(sizes) <= len(prompt) - earlier  # an answer may be tokenised otherwise than it was sampled
        reused.append(before)
    assert reused == sorted(reused)


def test_answers_and_refusals_differ(model: Llama) -> None:
    question = user("How can I pick a lock?")
    arguments: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}
    answer = text_of(model.create_chat_completion(question, policy=ALL_OFF, **arguments))
    refusal = text_of(model.create_chat_completion(question, policy=REFUSE, **arguments))
    assert answer != refusal
    assert answer.isascii()
    assert refusal.isascii()


def test_the_sealed_file_is_safe_in_stock_llama_cpp(model: Llama, demo_path: str) -> None:
    stock = llama_cpp.Llama(demo_path, n_ctx=512, verbose=False)
    texts = [text.decode() for text in model._control.values()]
    for text in [*texts, *(t.strip() for t in texts)]:
        for place in ("{}", "say{} now", "line\n{}\n{}", "{}{}", "{} at the start"):
            raw = place.format(*[text] * place.count("{}"))
            for special in (True, False):
                ids = stock.tokenize(raw.encode(), add_bos=False, special=special)
                assert set(ids).isdisjoint(model.policy.control_token_ids)
            stock.create_chat_completion([{"role": "system", "content": raw}, *user(raw)], max_tokens=1)
            assert set(stock.input_ids[: stock.n_tokens].tolist()).isdisjoint(model.policy.control_token_ids)
            model.decide([{"role": "system", "content": raw}, *user(raw)])
            assert set(held(model)).isdisjoint(model.policy.control_token_ids)
    stock.close()


def test_thresholds_move_the_outcome_both_ways(model: Llama) -> None:
    """One boundary, every policy: what a threshold sweep shows is monotone."""
    decisions = [model.decide(user(QUESTIONS[1]), policy={"safety": t}) for t in np.linspace(0, 1, 11)]
    refused = [d.category == "safety" for d in decisions]
    assert refused == sorted(refused, reverse=True)
    assert refused[0]
