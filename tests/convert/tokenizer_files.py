"""Writes tokenizer files as transformers does, from a real or a made-up vocabulary."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real_vocabularies import RealVocab

CONTROL_TEXTS = (
    " [Humanizing requests]",
    " [Incomplete requests]",
    " [Indeterminate requests]",
    " [Requests with safety concerns]",
    " [Unsupported requests]",
    " [respond]",
)
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}<|assistant|>\n"

# Published pre-tokenizers, as their tokenizer.json spells them.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            byte_level(use_regex=False),
        ],
    }


def byte_level(*, use_regex: bool = True) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def digits_and_words() -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}


def added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": token_id, "content": content, **flags}


def write_json(folder: Path, name: str, value: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_byte_level(
    folder: Path,
    vocab: RealVocab,
    pre_tokenizer: dict[str, Any],
    *,
    ignore_merges: bool = False,
    bos: str | None = None,
    eos: str = "<|endoftext|>",
    control: Sequence[str] = CONTROL_TEXTS,
    special: bool = False,
    more: Sequence[str] = (),
    normalizer: dict[str, Any] | None = None,
) -> int:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE; returns the number of tokens."""
    base = [(i, token, kind) for i, (token, kind) in enumerate(zip(vocab.tokens, vocab.types)) if kind in (1, 3, 4)]
    added = [added_token(i, token, special=True) for i, token, kind in base if kind != 1]
    first_added = max(i for i, _, kind in base if kind == 1)  # earlier ones are in the trained vocabulary, too
    texts = {entry["content"] for entry in added}
    n = base[-1][0] + 1
    for text in [t for t in (bos, eos, *more) if t is not None and t not in texts]:
        added.append(added_token(n, text, special=True))
        n += 1
    added += [added_token(n + i, text, special=special) for i, text in enumerate(control)]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": bos_template(bos, {a["content"]: a["id"] for a in added}) if bos else byte_level(),
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token, kind in base if kind == 1 or i < first_added},
            "merges": vocab.merges,
            "ignore_merges": ignore_merges,
        },
    }
    write_json(folder, "tokenizer.json", tokenizer)
    config = {"eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    write_json(folder, "tokenizer_config.json", {**config, "bos_token": bos} if bos else config)
    return n + len(control)


def bos_template(bos: str, ids: dict[str, int]) -> dict[str, Any]:
    token, a, b = ({"SpecialToken": {"id": bos, "type_id": 0}}, *({"Sequence": {"id": x, "type_id": 0}} for x in "AB"))
    return {
        "type": "TemplateProcessing",
        "single": [token, a],
        "pair": [token, a, b],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }


def write_sentencepiece(
    folder: Path,
    vocab: RealVocab,
    *,
    model: bool = True,
    tokenizer: bool = True,
    decoder: bool = True,
    prefix: bool = True,
    control: Sequence[str] = CONTROL_TEXTS,
) -> int:
    """tokenizer.model and tokenizer.json, and tokenizer_config.json with or without `added_tokens_decoder`."""
    n = len(vocab.tokens)
    special = [
        added_token(i, t, special=True) for i, (t, kind) in enumerate(zip(vocab.tokens, vocab.types)) if kind in (2, 3)
    ]
    added = special + [added_token(n + i, text, special=False) for i, text in enumerate(control)]
    folder.mkdir(parents=True, exist_ok=True)
    if model:
        pieces = list(zip(vocab.tokens, vocab.scores, vocab.types))
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces, prefix=prefix))
    if tokenizer:
        write_json(folder, "tokenizer.json", sentencepiece_json(vocab, added, prefix=prefix))
    config: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
    }
    config |= {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}
    if decoder:
        config["added_tokens_decoder"] = {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added}
    write_json(folder, "tokenizer_config.json", config)
    return n + len(control)


def sentencepiece_json(vocab: RealVocab, added: list[dict[str, Any]], *, prefix: bool) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": bos_template("<s>", {a["content"]: a["id"] for a in added}),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocab.tokens)},
            "merges": sentencepiece_merges(vocab),
        },
    }


def sentencepiece_merges(vocab: RealVocab) -> list[list[str]]:
    """As transformers extracts them: every way to split a piece in two pieces, best piece first."""
    ids = {token: i for i, token in enumerate(vocab.tokens)}
    merges = []
    for token, score, kind in zip(vocab.tokens, vocab.scores, vocab.types):
        if kind == 1:
            pairs = [(token[:k], token[k:]) for k in range(1, len(token)) if token[:k] in ids and token[k:] in ids]
            merges += [(-score, pair) for pair in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    return [list(pair) for _, pair in sorted(merges, key=lambda entry: entry[0])]


def sentencepiece_model(pieces: Sequence[tuple[str, float, int]], *, prefix: bool = True, model_type: int = 2) -> bytes:
    """A SentencePiece ModelProto, written by hand."""
    out = bytearray()
    for text, score, kind in pieces:
        body = field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
        out += field(1, body + (number(3, kind) if kind != 1 else b""))
    ids = number(40, 0) + number(41, 1) + number(42, 2) + number(43, -1)
    out += field(2, number(3, model_type) + number(4, len(pieces)) + number(35, 1) + ids)
    out += field(3, field(1, b"identity") + number(3, int(prefix)) + number(4, 0) + number(5, 1))
    return bytes(out)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number_: int, data: bytes) -> bytes:
    return varint(number_ << 3 | 2) + varint(len(data)) + data


def number(number_: int, value: int) -> bytes:
    return varint(number_ << 3) + varint(value)
