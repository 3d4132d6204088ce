"""GPT-2's way to write any bytes as printable characters; byte-level BPE vocabularies are spelled in it."""

from __future__ import annotations


def _table() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_TO_CHAR = _table()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}


def encode(text: str) -> str:
    """`text` as a byte-level vocabulary spells it."""
    return "".join(BYTE_TO_CHAR[byte] for byte in text.encode())


def decode(piece: str) -> str | None:
    """The text of a piece; None if a character of it stands for no byte, or the bytes are not UTF-8."""
    try:
        return bytes(CHAR_TO_BYTE[char] for char in piece).decode()
    except (KeyError, UnicodeDecodeError):
        return None


def sealed_text(raw: bytes, model: object) -> str:
    """The text that a sealed control token prints. `model` is the file's `tokenizer.ggml.model`."""
    piece = raw.decode(errors="replace")
    text = decode(piece) if model == "gpt2" else None
    return piece.replace("▁", " ") if text is None else text
