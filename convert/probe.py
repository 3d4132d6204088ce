"""Asks stock llama.cpp which tokens it makes of some texts.

Run as a process of its own: llama.cpp aborts on some broken vocabularies, and its copy of the vocabulary does not count
towards the converter's memory. Reads {"path", "texts"} as JSON; prints {"plain", "special"}, the token ids of each text
without and with special tokens parsed.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any, Final

LOG_LEVEL_ERROR: Final = 4  # ggml.h: GGML_LOG_LEVEL_ERROR


def tokenize(path: str, texts: list[str]) -> dict[str, list[list[int]]]:
    """Token ids of each text, "plain" and "special"; only the vocabulary of the file is loaded.

    Raises:
        ValueError: llama.cpp does not load it; says what it says.
    """
    import llama_cpp

    errors = []

    def note_error(level: int, text: bytes, _: object) -> None:
        if level == LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip())

    callback = llama_cpp.llama_log_callback(note_error)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise ValueError(f"llama.cpp cannot load the vocabulary: {errors[0] if errors else 'no reason given'}")
    vocab = llama_cpp.llama_model_get_vocab(model)
    return {
        name: [_tokenize(vocab, text, parse_special=special) for text in texts]
        for name, special in (("plain", False), ("special", True))
    }


def _tokenize(vocab: Any, text: str, *, parse_special: bool) -> list[int]:
    from llama_cpp import llama_token, llama_tokenize

    data = text.encode()
    room = len(data) + 8
    tokens = (llama_token * room)()
    n = llama_tokenize(vocab, data, len(data), tokens, room, False, parse_special)
    if n < 0:
        raise ValueError(f"llama.cpp makes {-n} tokens of {len(data)} bytes")
    return list(tokens[:n])


if __name__ == "__main__":
    try:
        print(json.dumps(tokenize(**json.load(sys.stdin))))
    except ValueError as error:
        sys.exit(str(error))
