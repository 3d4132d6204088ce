"""Asks stock llama.cpp, in a process of its own, which tokens it makes of some texts.

In its own process because llama.cpp aborts on some broken vocabularies, and because its copy of the vocabulary does
not count towards the converter's memory. Reads {"path", "texts"} as JSON; prints {"plain", "special"}, the token ids of
each text without and with special tokens parsed.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any


def main() -> None:
    import llama_cpp

    request = json.load(sys.stdin)
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(request["path"].encode(), params)
    if not model:
        raise SystemExit("llama.cpp cannot load the vocabulary")
    vocab = llama_cpp.llama_model_get_vocab(model)
    print(
        json.dumps(
            {
                "plain": [_tokenize(vocab, text, parse_special=False) for text in request["texts"]],
                "special": [_tokenize(vocab, text, parse_special=True) for text in request["texts"]],
            }
        )
    )


def _tokenize(vocab: Any, text: str, *, parse_special: bool) -> list[int]:
    from llama_cpp import llama_token, llama_tokenize

    data = text.encode()
    room = len(data) + 8
    tokens = (llama_token * room)()
    n = llama_tokenize(vocab, data, len(data), tokens, room, False, parse_special)
    if n < 0:
        raise SystemExit(f"llama_tokenize needs {-n} tokens for {len(data)} bytes")
    return list(tokens[:n])


if __name__ == "__main__":
    main()
