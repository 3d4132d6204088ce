"""SentencePiece vocabularies: `tokenizer.model`, or what tokenizer.json keeps of one.

tokenizer.model is one protobuf message (google/sentencepiece, src/sentencepiece_model.proto):
    ModelProto { repeated SentencePiece pieces = 1; TrainerSpec trainer_spec = 2; NormalizerSpec normalizer_spec = 3; }
    SentencePiece { string piece = 1; float score = 2; Type type = 3; }
The piece types have the numbers of gguf's `TokenType`.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from refusal_edge.errors import ConversionError, FormatError

from .byte_level import merges, steps, vocabulary
from .files import TokenizerFiles
from .rows import Rows

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_TRAINER_MODEL_TYPE, _BPE = 3, 2
_NORMALIZER_ADD_DUMMY_PREFIX = 3


@dataclass(frozen=True)
class Proto:
    """The parts of tokenizer.model that matter here."""

    pieces: list[tuple[bytes, float, int]]
    model_type: int | None
    add_dummy_prefix: bool


def parse_proto(data: bytes, source: str) -> Proto:
    """Reads tokenizer.model.

    Raises:
        FormatError: not such a file, or truncated.
        ConversionError: a model that llama.cpp's SentencePiece tokenizer does not compute (unigram, word, char).
    """
    pieces: list[tuple[bytes, float, int]] = []
    model_type: int | None = None
    prefix = True
    try:
        for number, value in _fields(memoryview(data)):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                model_type = dict(_fields(value)).get(_TRAINER_MODEL_TYPE, 1)
            elif number == 3:
                prefix = bool(dict(_fields(value)).get(_NORMALIZER_ADD_DUMMY_PREFIX, 1))
    except (IndexError, ValueError, TypeError, struct.error):
        raise FormatError(f"{source}: not a SentencePiece model, or a damaged one") from None
    if not pieces:
        raise FormatError(f"{source}: no pieces; not a SentencePiece model")
    if model_type not in (None, _BPE):
        raise ConversionError(f"{source}: SentencePiece model type {model_type}; only BPE ({_BPE}) is supported")
    return Proto(pieces, model_type, prefix)


def _piece(message: memoryview) -> tuple[bytes, float, int]:
    fields = dict(_fields(message))
    text = bytes(memoryview(fields.get(1, b"")))
    score, kind = fields.get(2, 0.0), fields.get(3, int(TokenType.NORMAL))
    text.decode()
    if not (isinstance(score, float) and math.isfinite(score) and TokenType.NORMAL <= kind <= TokenType.BYTE):
        raise ValueError
    return text, score, kind


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: int, float, or a view of a nested message or string."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = 0
        for shift in range(0, 70, 7):
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError

    def take(n_bytes: int) -> memoryview:
        nonlocal position
        if n_bytes > len(message) - position:
            raise ValueError
        position += n_bytes
        return message[position - n_bytes : position]

    while position < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
        elif wire == 1:
            yield number, struct.unpack("<d", take(8))[0]
        elif wire == 2:
            yield number, take(varint())
        elif wire == 5:
            yield number, struct.unpack("<f", take(4))[0]
        else:
            raise ValueError


def read_pieces(files: TokenizerFiles, rows: Rows) -> tuple[bool, list[str]]:
    """Puts the trained vocabulary into its rows; returns whether a space precedes the text, and warnings.

    tokenizer.model is the original; tokenizer.json is used where it is the only one left.
    """
    if files.proto is None:
        return _read_json(files, rows)
    proto = parse_proto(files.proto, str(files.folder / "tokenizer.model"))
    for i, (text, score, kind) in enumerate(proto.pieces):
        if kind == TokenType.USER_DEFINED:
            text = text.replace("▁".encode(), b" ")
        rows.put(i, text, TokenType(kind), score)
    return proto.add_dummy_prefix, []


def _read_json(files: TokenizerFiles, rows: Rows) -> tuple[bool, list[str]]:
    """Scores from the order of the merges: SentencePiece merges best score first, and so does this list."""
    table = vocabulary(files)
    unknown = files.base_model.get("unk_token")
    formed = [merge.replace(" ", "") for merge in merges(files)]
    rank: dict[str, int] = {}
    for piece in formed:
        rank.setdefault(piece, len(rank))
    normal = set()
    for piece, token_id in table.items():
        kind, score = TokenType.NORMAL, -float(rank.get(piece, len(rank)))
        if piece == unknown:
            kind, score = TokenType.UNKNOWN, 0.0
        elif _BYTE_PIECE.fullmatch(piece):
            kind, score = TokenType.BYTE, 0.0
        elif token_id not in files.added:
            normal.add(piece)
        rows.put(token_id, piece.encode(errors="replace"), kind, score)
    return _prepends_space(files), _missing_merges(table, normal, formed)


def _missing_merges(table: dict[str, int], normal: set[str], formed: list[str]) -> list[str]:
    """llama.cpp joins any two pieces that form a third; a vocabulary trained by `tokenizers` may know fewer ways."""
    possible = sum(piece[:cut] in table and piece[cut:] in table for piece in normal for cut in range(1, len(piece)))
    listed = sum(piece in normal for piece in formed)
    if possible <= listed:
        return []
    return [
        f"tokenizer.json lists {listed} of {possible} possible merges: it was not made from a SentencePiece model, "
        "and llama.cpp may split some words differently"
    ]


def _prepends_space(files: TokenizerFiles) -> bool:
    """Whether the normalizer or pre-tokenizer of tokenizer.json puts a space before the text."""
    normalizer = steps(files.tokenizer.get("normalizer"))
    pre_tokenizer = steps(files.tokenizer.get("pre_tokenizer"))
    if any(step.get("type") == "Prepend" and step.get("prepend") == "▁" for step in normalizer):
        return True
    for step in pre_tokenizer:
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            return bool(scheme != "never")
    return False


def check_bytes(rows: Rows, folder: object) -> None:
    """
    Raises:
        ConversionError: a byte has no piece: llama.cpp throws, and the host dies, on text that needs it.
    """
    known = set(rows.tokens)
    missing = [piece for piece in (b"<0x%02X>" % byte for byte in range(256)) if piece not in known]
    if missing:
        raise ConversionError(
            f"{folder}: the vocabulary lacks byte pieces ({missing[0].decode()} and {len(missing) - 1} more): "
            "llama.cpp cannot tokenize text outside it"
        )
