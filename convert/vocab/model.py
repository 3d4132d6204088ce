"""A vocabulary as GGUF holds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType, Keys, TokenType

from ..gguf_writer import KeyValue


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a trained vocabulary, with the flags of `tokenizers.AddedToken`."""

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    single_word: bool = False


@dataclass(frozen=True)
class Vocab:
    """One entry per embedding row.

    Attributes:
        model: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
        pre: llama.cpp's name of the pre-tokenizer.
        tokens: text of each token as GGUF stores it; byte-encoded for the normal tokens of a BPE vocabulary.
        types: gguf `TokenType` of each token.
        scores: float32, shape (n,); None for BPE.
        merges: "left right", best first; None for SentencePiece.
        added: the added tokens, by id.
        special_ids: "bos", "eos", "eot", ... -> id. add_special: "bos", "eos", ... -> put it around every prompt.
        chat_templates: name -> Jinja source; the one in use is "default".
        add_space_prefix: whether a space is put before the text (SentencePiece); None leaves llama.cpp's default.
        warnings: one line each, for the person who converts.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    tokens: list[bytes]
    types: list[int]
    scores: npt.NDArray[np.float32] | None = None
    merges: list[str] | None = None
    added: list[AddedToken] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)
    add_special: dict[str, bool] = field(default_factory=dict)
    chat_templates: dict[str, str] = field(default_factory=dict)
    add_space_prefix: bool | None = None
    warnings: list[str] = field(default_factory=list)

    def kv(self) -> list[KeyValue]:
        """Every `tokenizer.*` key, in the order in which llama.cpp's converter writes them."""
        return list(self._pairs())

    def _pairs(self) -> Iterator[KeyValue]:
        text, flag, uint = GGUFValueType.STRING, GGUFValueType.BOOL, GGUFValueType.UINT32
        names = Keys.Tokenizer
        if self.add_space_prefix is not None:
            yield KeyValue(names.ADD_PREFIX, self.add_space_prefix, flag)
        yield KeyValue(names.MODEL, self.model, text)
        yield KeyValue(names.PRE, self.pre, text)
        yield _array(names.LIST, self.tokens, text)
        if self.scores is not None:
            yield _array(names.SCORES, self.scores, GGUFValueType.FLOAT32)
        yield _array(names.TOKEN_TYPE, self.types, GGUFValueType.INT32)
        if self.merges:
            yield _array(names.MERGES, self.merges, text)
        for role, token_id in self.special_ids.items():
            yield KeyValue(f"tokenizer.ggml.{SPELLING.get(role, role)}_token_id", token_id, uint)
        for role, value in self.add_special.items():
            yield KeyValue(f"tokenizer.ggml.add_{role}_token", value, flag)
        yield from self._templates()

    def _templates(self) -> Iterator[KeyValue]:
        named = {name: source for name, source in self.chat_templates.items() if name != "default"}
        for name, source in named.items():
            yield KeyValue(Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), source, GGUFValueType.STRING)
        if named:
            yield _array(Keys.Tokenizer.CHAT_TEMPLATES, sorted(named), GGUFValueType.STRING)
        if "default" in self.chat_templates:
            yield KeyValue(Keys.Tokenizer.CHAT_TEMPLATE, self.chat_templates["default"], GGUFValueType.STRING)


SPELLING = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # as the format spells them


def _array(key: str, values: Any, element: GGUFValueType) -> KeyValue:
    return KeyValue(key, values, GGUFValueType.ARRAY, element)


def token_type(added: AddedToken) -> TokenType:
    """CONTROL tokens are invisible and match only where special tokens are parsed; USER_DEFINED ones always match."""
    return TokenType.CONTROL if added.special or _looks_special(added.content) else TokenType.USER_DEFINED


def _looks_special(text: str) -> bool:
    """Many models forget `special` on their turn markers; llama.cpp's converter corrects the same spellings."""
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(begin) and text.endswith(end) for begin, end in (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    )
