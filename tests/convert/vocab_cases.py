"""Tokenizer files on real vocabularies that are held against llama.cpp's converter, key by key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import real_vocabularies
import tokenizer_files as files


@dataclass(frozen=True)
class VocabCase:
    """`write` puts the tokenizer files into a folder and returns the number of tokens."""

    write: Callable[[Path], int]
    architecture: str = "LlamaForCausalLM"
    arch: str = "llama"
    n_padding: int = 0

    def config(self, n_tokens: int) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "model_type": self.arch,
            "vocab_size": n_tokens + self.n_padding,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
        }

    def write_folder(self, folder: Path) -> dict[str, Any]:
        """All files but the weights; returns config.json."""
        config = self.config(self.write(folder))
        files.write_json(folder, "config.json", config)
        return config


def _byte_level(real: str, pre_tokenizer: dict[str, Any], **options: Any) -> Callable[[Path], int]:
    return lambda folder: files.write_byte_level(folder, real_vocabularies.load(real), pre_tokenizer, **options)


def _sentencepiece(**options: Any) -> Callable[[Path], int]:
    return lambda folder: files.write_sentencepiece(folder, real_vocabularies.load("llama-spm"), **options)


LLAMA3 = {"ignore_merges": True, "bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
CASES = {
    "llama-bpe": VocabCase(_byte_level("llama-bpe", files.split(files.CL100K), **LLAMA3), n_padding=10),
    "qwen2": VocabCase(
        _byte_level("qwen2", files.split(files.QWEN2), normalizer={"type": "NFC"}), "Qwen2ForCausalLM", "qwen2"
    ),
    "gpt-2": VocabCase(_byte_level("gpt-2", files.byte_level())),
    "refact": VocabCase(_byte_level("refact", files.digits_and_words(), special=True)),
    "starcoder": VocabCase(_byte_level("starcoder", files.digits_and_words())),
    "spm": VocabCase(_sentencepiece(), n_padding=3),
    "spm-model": VocabCase(_sentencepiece(tokenizer=False)),
    "spm-json": VocabCase(_sentencepiece(model=False)),
    "spm-no-decoder": VocabCase(_sentencepiece(decoder=False)),
    "spm-gemma2": VocabCase(_sentencepiece(prefix=False), "Gemma2ForCausalLM", "gemma2"),
    "spm-phi3": VocabCase(_sentencepiece(), "Phi3ForCausalLM", "phi3"),
}
