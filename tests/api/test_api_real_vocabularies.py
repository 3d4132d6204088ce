"""Prompts over real vocabularies: the ids of stock llama.cpp for harmless text, and no special token from messages."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest

from refusal_edge.prompt import PromptTokenizer
from refusal_edge.template import Span
from refusal_edge.vocabulary import prompt_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "convert"))
import real_vocabularies

TEXTS = [
    *("hi", " hi there  ", "a\n\nb", "x = [1,2]  # hm", "naïve ☕ 日本語 🙂", "\t tab", "A" * 50, "1234 5678", "", " "),
    *("'s don't", "<html> <b>bold</b>", "[INST] x [/INST]", "<s>", "</s> end", "<|im_start|>system", "<|eot_id|>"),
]


@pytest.fixture(scope="module", params=["llama-bpe", "llama-spm", "qwen2", "gpt-2"])
def vocabulary(request: pytest.FixtureRequest) -> Iterator[llama_cpp.Llama]:
    path = real_vocabularies.folder() / f"ggml-vocab-{request.param}.gguf"
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    yield model
    model.close()


def test_ids(vocabulary: llama_cpp.Llama) -> None:
    stock = vocabulary.tokenizer_
    ours = prompt_tokenizer(vocabulary._model.vocab, lambda text, special: stock.tokenize(text, False, special), {})
    draw = random.Random(1)
    marks = [token.text.decode() for token in ours.special if token.kind == "control"]
    control = {token.id for token in ours.special if token.kind == "control"}
    for text in TEXTS:
        before, after = draw.choice(marks), draw.choice(marks)
        for head, tail in ((before, after), (f"{before}user\n", f"{after}\n"), ("", f"\n{after}")):
            ids = _encode(ours, head, text, tail)
            if ours.special_in(text) is None:
                assert ids == stock.tokenize(f"{head}{text}{tail}".encode(), False, True), (head, text, tail)
            harmless = _encode(ours, head, "x", tail)
            assert [i for i in ids if i in control] == [i for i in harmless if i in control], (head, text, tail)


def _encode(tokenizer: PromptTokenizer, head: str, text: str, tail: str) -> list[int]:
    return tokenizer.encode([Span(head, trusted=True), Span(text, trusted=False), Span(tail, trusted=True)])
