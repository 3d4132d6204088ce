"""Byte-level BPE: each byte of the text is one printable character of the vocabulary (GPT-2's table)."""

from __future__ import annotations

from typing import Any

from gguf import TokenType

from ..jsonfile import shown
from .files import TokenizerFiles
from .rows import Rows


def _table() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_TO_CHAR = _table()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}


def encode(text: str) -> str:
    """`text` as a byte-level vocabulary spells it."""
    return "".join(BYTE_TO_CHAR[byte] for byte in text.encode())


def decode(piece: str) -> bytes | None:
    """The bytes that a piece stands for; None if it holds a character that stands for none."""
    values = [CHAR_TO_BYTE.get(char) for char in piece]
    return None if None in values else bytes(values)  # type: ignore[arg-type]


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
    space = BYTE_TO_CHAR[ord(" ")]
    result = []
    for entry in entries:
        if isinstance(entry, str) and entry.count(" ") == 1:
            result.append(entry)
        elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) and part for part in entry):
            result.append(" ".join(part.replace(" ", space) for part in entry))
        else:
            raise files.broken("tokenizer.json", f"merge {len(result)} must be two pieces, got {shown(entry)}")
    return result
