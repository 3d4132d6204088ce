"""Byte-level BPE, from tokenizer.json."""

from __future__ import annotations

from typing import Any

from gguf import TokenType

from refusal_edge.byte_level import encode

from ..jsonfile import shown
from .files import TokenizerFiles
from .rows import Rows


def is_byte_level(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json is a BPE over bytes, and not SentencePiece in tokenizer.json's clothes."""
    return files.base_model.get("type") == "BPE" and any(
        step.get("type") == "ByteLevel"
        for part in ("pre_tokenizer", "decoder")
        for step in steps(files.tokenizer.get(part))
    )


_SEQUENCES = ("pretokenizers", "normalizers", "decoders", "processors")


def steps(part: object) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer, decoder or post-processor as the flat list of its steps."""
    if not isinstance(part, dict):
        return []
    if part.get("type") != "Sequence":
        return [part]
    inner: list[object] = next((part[key] for key in _SEQUENCES if isinstance(part.get(key), list)), [])
    return [step for item in inner for step in steps(item)]


def read_pieces(files: TokenizerFiles, rows: Rows) -> None:
    """Puts the trained vocabulary into its rows."""
    for piece, token_id in vocabulary(files).items():
        rows.put(token_id, piece.encode(errors="replace"), TokenType.NORMAL)


def vocabulary(files: TokenizerFiles) -> dict[str, int]:
    """`model.vocab` of tokenizer.json: piece -> id.

    Raises:
        FormatError: it is not a table of integers.
    """
    table = files.base_model.get("vocab")
    if not isinstance(table, dict) or not all(type(i) is int and i >= 0 for i in table.values()):
        raise files.broken("tokenizer.json", "model.vocab must map pieces to ids")
    return table


def merges(files: TokenizerFiles) -> list[str]:
    """`model.merges` as "left right", best first; a space within a part is byte-encoded.

    Raises:
        FormatError: it is not a list of strings or pairs of strings.
    """
    entries = files.base_model.get("merges")
    if not isinstance(entries, list):
        raise files.broken("tokenizer.json", "model.merges must be a list")
    space = encode(" ")
    result = []
    for entry in entries:
        if isinstance(entry, str) and entry.count(" ") == 1:
            result.append(entry)
        elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) and part for part in entry):
            result.append(" ".join(part.replace(" ", space) for part in entry))
        else:
            raise files.broken("tokenizer.json", f"merge {len(result)} must be two pieces, got {shown(entry)}")
    return result
