"""llama.cpp's name for a pre-tokenizer, found by its structure.

llama.cpp's own converter hashes the ids of one long string, begin-of-text token included, so that a changed template
or one more added token makes it fail or pick another name. The structure in tokenizer.json says it directly.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from refusal_edge.errors import ConversionError

from .byte_level import steps
from .files import TokenizerFiles

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = rf"{CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
QWEN2 = rf"{CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)

# Other ways to write the same expression: possessive quantifiers, contractions, and tails that split alike.
_SPELLINGS = (
    ("++", "+"),
    ("?+", "?"),
    ("*+", "*"),
    ("{1,3}+", "{1,3}"),
    (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTIONS),
    (r"'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS),
    (r"\s+$|", ""),
    (r"\s*[\r\n]|", r"\s*[\r\n]+|"),
)

DIGITS = ("split", r"\p{N}")
BYTES = ("bytes",)
Shape = tuple[tuple[str, ...], ...]


def find(files: TokenizerFiles, arch: str, texts: Collection[str]) -> str:
    """The name of the pre-tokenizer of tokenizer.json. `texts` are those of the added tokens.

    Names that split alike (llama.cpp, src/llama-vocab.cpp) are told apart by the model's tokens.

    Raises:
        ConversionError: a structure that llama.cpp does not know; shows it and how to override.
    """
    shape = _shape(files.tokenizer.get("pre_tokenizer"))
    if shape == (("split", CL100K), BYTES):
        if files.base_model.get("ignore_merges") is True:
            return "llama-bpe"
        return "smaug-bpe" if "<|begin_of_text|>" in texts else "dbrx"
    if shape == (("split", QWEN2), BYTES):
        return "deepseek-r1-qwen" if "<｜begin▁of▁sentence｜>" in texts else "qwen2"
    if shape == (("split", O200K), BYTES):
        return "gpt-4o"
    if shape == (("split", TEKKEN), BYTES):
        return "tekken"
    if shape == (("split", GPT2), BYTES):
        return "gpt-2"
    if shape == (DIGITS, ("split", GPT2), BYTES):
        if "<fim_prefix>" not in texts:
            return "smollm"
        return "refact" if arch == "granite" or "<reponame>" in texts else "starcoder"
    raise ConversionError(
        f"{files.folder / 'tokenizer.json'}: unknown pre-tokenizer {_shown(shape, files)}: if llama.cpp knows it, pass "
        "--pre NAME (the names are those compared with tokenizer_pre in llama.cpp's src/llama-vocab.cpp)"
    )


def _shape(pre_tokenizer: object) -> Shape:
    """The steps in one spelling: ("split", regex), ("bytes",), or ("?", type) for what is not understood."""
    shape: list[tuple[str, ...]] = []
    for step in steps(pre_tokenizer):
        kind = step.get("type")
        if kind == "Split" and (regex := _regex(step)):
            shape.append(("split", regex))
        elif kind == "Digits" and step.get("individual_digits") is True:
            shape.append(DIGITS)
        elif kind == "ByteLevel" and not step.get("add_prefix_space", True):
            shape += [("split", GPT2), BYTES] if step.get("use_regex", True) else [BYTES]
        else:
            shape.append(("?", str(kind)))
    return tuple(shape)


def _regex(step: dict[str, Any]) -> str | None:
    """The expression of a step that isolates its matches."""
    isolates = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isolates or not isinstance(regex, str):
        return None
    for spelling, usual in _SPELLINGS:
        regex = regex.replace(spelling, usual)
    return regex + "+" if regex.endswith(r"|\s") else regex


def _shown(shape: Shape, files: TokenizerFiles) -> str:
    """The expressions as JSON spells them, or all of it where it is not made of expressions."""
    only_regexes = shape and all(part[0] in ("split", "bytes") for part in shape)
    value = [part[1] for part in shape if part[0] == "split"] if only_regexes else files.tokenizer.get("pre_tokenizer")
    return json.dumps(value, ensure_ascii=False)[:800]
