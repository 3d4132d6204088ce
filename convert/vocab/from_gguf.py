"""The vocabulary of a GGUF file that some other tool made."""

from __future__ import annotations

from typing import Literal

from gguf import TokenType

from refusal_edge.byte_level import sealed_text
from refusal_edge.errors import ConversionError
from refusal_edge.gguf_file import GGUFArray, GGUFFile

from .model import SPELLING, AddedToken, Vocab

_ROLES = {spelling: role for role, spelling in SPELLING.items()}
_SPACE_AS_BYTE = "Ġ".encode()


def vocab_from_gguf(file: GGUFFile, known: tuple[int, ...] = ()) -> Vocab:
    """Tokens, types and merges of `file`, and which of its tokens were added.

    Args:
        known: ids that count as added although they are NORMAL: control tokens that were sealed before.

    Raises:
        ConversionError: the file has no vocabulary.
    """
    column = file.kv.get("tokenizer.ggml.tokens")
    if not isinstance(column, GGUFArray):
        raise ConversionError(f"{file.path}: the file has no vocabulary")
    tokens: list[bytes] = column.tolist()
    types = file.kv.get("tokenizer.ggml.token_type")
    merges = file.kv.get("tokenizer.ggml.merges")
    kinds = types.tolist() if types is not None else [int(TokenType.NORMAL)] * len(tokens)
    name = file.kv.get("tokenizer.ggml.model")
    return Vocab(
        model=_spelling(name, tokens),
        pre=str(file.kv.get("tokenizer.ggml.pre", "default")),
        tokens=tokens,
        types=kinds,
        merges=[merge.decode(errors="replace") for merge in merges] if merges is not None else None,
        added=[
            AddedToken(i, _text(tokens[i], kind, name), special=kind == TokenType.CONTROL)
            for i, kind in enumerate(kinds)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) or i in known
        ],
        special_ids=_special_ids(file),
    )


def _special_ids(file: GGUFFile) -> dict[str, int]:
    ids = {}
    for key, value in file.kv.items():
        name = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
        if key == f"tokenizer.ggml.{name}_token_id" and isinstance(value, int):
            ids[_ROLES.get(name, name)] = value
    return ids


def can_seal(file: GGUFFile) -> bool:
    """Whether a NORMAL token of this vocabulary is out of reach unless smaller pieces merge to it."""
    return file.kv.get("tokenizer.ggml.model") in ("gpt2", "llama", "gemma4")


def _spelling(name: object, tokens: list[bytes]) -> Literal["gpt2", "llama"]:
    """Byte-level, or with ▁ for a space: SentencePiece, and the BPE vocabularies that were made from one."""
    byte_level = name == "gpt2" and any(token.startswith(_SPACE_AS_BYTE) for token in tokens)
    return "gpt2" if byte_level else "llama"


def _text(raw: bytes, kind: int, model: object) -> str:
    return sealed_text(raw, model) if kind == TokenType.NORMAL else raw.decode(errors="replace")
