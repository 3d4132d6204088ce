"""Stock llama.cpp's tokenizer on a vocabulary of ours, in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
from gguf import GGUFValueType

from refusal_edge.convert.gguf_writer import KeyValue, encode_header

_silent = llama_cpp.llama_log_callback(lambda *_: None)


def write_vocab(path: Path, pairs: Iterable[Any], arch: str = "llama") -> Path:
    path.write_bytes(encode_header([KeyValue("general.architecture", arch, GGUFValueType.STRING), *pairs], []))
    return path


class Tokenizer:
    def __init__(self, vocab: Any) -> None:
        self.vocab = vocab

    def __call__(self, text: str | bytes, *, special: bool = False, add_special: bool = False) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        room = len(data) + 8
        tokens = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, room, add_special, special)
        assert n >= 0
        return list(tokens[:n])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def ends_generation(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))


@contextmanager
def tokenizer(path: Path) -> Iterator[Tokenizer]:
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p())
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp cannot load {path}"
    try:
        yield Tokenizer(llama_cpp.llama_model_get_vocab(model))
    finally:
        llama_cpp.llama_model_free(model)
