"""What the prompt's safety needs to know of a loaded vocabulary."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, Final, Literal

import llama_cpp

from refusal_edge.prompt import PromptTokenizer, SpecialToken, Tokenize

_KINDS: Final[tuple[tuple[int, Literal["control", "unknown", "user"]], ...]] = (
    (llama_cpp.LLAMA_TOKEN_ATTR_CONTROL, "control"),
    (llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN, "unknown"),
    (llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED, "user"),
)
_SPECIAL: Final = sum(bit for bit, _ in _KINDS)


def prompt_tokenizer(vocab: Any, tokenize: Tokenize, control: dict[int, bytes]) -> PromptTokenizer:
    """Reads the special tokens of a `llama_vocab`; about 50 ms for 128k tokens."""
    return PromptTokenizer(tokenize, special_tokens(vocab), control)


def special_tokens(vocab: Any) -> list[SpecialToken]:
    """The tokens that llama.cpp cuts out of text before it tokenises the rest."""
    attributes = ((i, llama_cpp.llama_vocab_get_attr(vocab, i)) for i in range(llama_cpp.llama_vocab_n_tokens(vocab)))
    return [
        SpecialToken(
            id=i,
            text=llama_cpp.llama_vocab_get_text(vocab, i),
            kind=next(kind for bit, kind in _KINDS if attribute & bit),
            lstrip=bool(attribute & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP),
            rstrip=bool(attribute & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP),
        )
        for i, attribute in attributes
        if attribute & _SPECIAL
    ]


def token_texts(vocab: Any, ids: Iterable[int]) -> dict[int, bytes]:
    """The text that each token stands for, special or not, whatever its length."""
    return {i: _piece(vocab, i) for i in ids}


def _piece(vocab: Any, token_id: int) -> bytes:
    size = -llama_cpp.llama_token_to_piece(vocab, token_id, None, 0, 0, True)
    buffer = (ctypes.c_char * max(size, 1))()
    llama_cpp.llama_token_to_piece(vocab, token_id, buffer, size, 0, True)
    return bytes(buffer[: max(size, 0)])
