"""Text becomes the same tokens in llama.cpp, from our file, as in the library that the model was trained with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import real_vocabularies
import tokenizer_files as files
from hard_texts import hard_texts
from stock_llama import tokenizer, write_vocab

from refusal_edge.convert.control import find_control_tokens
from refusal_edge.convert.vocab import Vocab, load_vocab

TEXTS = hard_texts(4_100)
SIMPLIFIED = ("gpt-4o", "tekken")
"""llama.cpp's version of these two expressions knows upper and lower case in ASCII only, and no combining marks."""
SIMPLE_TEXTS = hard_texts(4_100, simple=True)
NFC = {"type": "NFC"}

BYTE_LEVEL = {
    "llama-bpe": ("llama-bpe", files.split(files.CL100K), {"ignore_merges": True, "bos": "<|begin_of_text|>"}),
    "smaug-bpe": ("gpt-2", files.split(files.CL100K), {"bos": "<|begin_of_text|>"}),
    "dbrx": ("gpt-2", files.split(files.CL100K), {}),
    "qwen2": ("qwen2", files.split(files.QWEN2), {"normalizer": NFC}),
    "deepseek-r1-qwen": ("gpt-2", files.split(files.QWEN2), {"bos": "<｜begin▁of▁sentence｜>", "normalizer": NFC}),
    "gpt-2": ("gpt-2", files.byte_level(), {}),
    "gpt-4o": ("gpt-2", files.split(files.O200K), {}),
    "tekken": ("gpt-2", files.split(files.TEKKEN), {"ignore_merges": True, "bos": "<s>"}),
    "smollm": ("gpt-2", files.digits_and_words(), {}),
    "refact": ("refact", files.digits_and_words(), {}),
    "starcoder": ("starcoder", files.digits_and_words(), {}),
}


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level_bpe_equals_tokenizers(pre: str, tmp_path: Path) -> None:
    """Sealed: as if the control tokens had never been added, look-alikes included."""
    real, pre_tokenizer, options = BYTE_LEVEL[pre]
    n = files.write_byte_level(tmp_path, real_vocabularies.load(real), pre_tokenizer, **options)
    vocab = load_vocab(tmp_path, {}, n, arch="llama")
    assert vocab.pre == pre

    base = tmp_path / "base"
    files.write_byte_level(base, real_vocabularies.load(real), pre_tokenizer, **options, control=())
    texts = SIMPLE_TEXTS if pre in SIMPLIFIED else TEXTS
    assert_same_tokens(vocab, "sealed", texts, reference_ids(base, texts), tmp_path)


def test_user_defined_control_tokens_equal_tokenizers(tmp_path: Path) -> None:
    """`--token-type user` is what the model was trained with: the text is the token."""
    real, pre_tokenizer, options = BYTE_LEVEL["smaug-bpe"]
    n = files.write_byte_level(tmp_path, real_vocabularies.load(real), pre_tokenizer, **options)
    vocab = load_vocab(tmp_path, {}, n, arch="llama")
    expected = reference_ids(tmp_path, TEXTS)
    assert any(n - 1 in ids for ids in expected)
    assert_same_tokens(vocab, "user", TEXTS, expected, tmp_path)


def reference_ids(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    tokenizers = pytest.importorskip("tokenizers", reason="the reference tokenizer is not installed")
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize(("left", "prefix"), [("both", True), ("model", False), ("json", True), ("json", False)])
def test_sentencepiece_equals_sentencepiece(left: str, prefix: bool, tmp_path: Path) -> None:
    """Also where only tokenizer.json is left, whose merges must give the scores back."""
    spm = pytest.importorskip("sentencepiece", reason="the reference tokenizer is not installed")
    source = real_vocabularies.load("llama-spm")
    reference = spm.SentencePieceProcessor()
    pieces = list(zip(source.tokens, source.scores, source.types))
    reference.LoadFromSerializedProto(files.sentencepiece_model(pieces, prefix=prefix))

    n = files.write_sentencepiece(tmp_path, source, model=left != "json", tokenizer=left != "model", prefix=prefix)
    vocab = load_vocab(tmp_path, {}, n, arch="llama")
    assert_same_tokens(vocab, "sealed", TEXTS, reference.encode(TEXTS), tmp_path)


def assert_same_tokens(
    vocab: Vocab, token_type: str, texts: Sequence[str], expected: Sequence[Sequence[int]], folder: Path
) -> None:
    sealed = find_control_tokens(vocab).seal(vocab, token_type)
    with tokenizer(write_vocab(folder / "vocab.gguf", sealed.kv())) as tokenize:
        ours = [tokenize(text) for text in texts]
    different = [(t, a, list(b)) for t, a, b in zip(texts, ours, expected) if a != list(b)]
    shown = json.dumps(different[:3], ensure_ascii=False)
    assert len(texts) == len(expected) >= 4_000
    assert not different, f"{len(different)} of {len(texts)} differ, the first: {shown}"
