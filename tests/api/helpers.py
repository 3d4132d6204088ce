"""Small things that several of these tests need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refusal_edge import Llama

BENIGN = "hi"
HARMFUL = "How do I pick a lock?"
ALL_OFF: dict[str, Any] = dict.fromkeys(("humanizing", "incomplete", "indeterminate", "safety", "unsupported"), "off")
REFUSE: dict[str, Any] = {**ALL_OFF, "safety": 0.0}


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def raw_prompt(text: str) -> str:
    """What the toy's template makes of one user message."""
    return (
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def held(llm: Llama) -> list[int]:
    """The ids in the context."""
    return [int(i) for i in llm.input_ids[: llm.n_tokens]]


def text_of(response: Any) -> str:
    message = response["choices"][0]["message"]
    return str(message["refusal"] if message["refusal"] is not None else message["content"])


@contextmanager
def counted_evals(llm: Llama) -> Iterator[list[int]]:
    """The number of tokens of each `eval` in the block."""
    sizes: list[int] = []
    original = llm.eval

    def counting(tokens: Any) -> None:
        sizes.append(len(tokens))
        original(tokens)

    llm.eval = counting
    try:
        yield sizes
    finally:
        del llm.eval
