"""Asks stock llama.cpp which tokens it makes of some texts, and llama-cpp-python whether it takes the chat templates.

Run as a process of its own: llama.cpp aborts on some broken vocabularies, and its copy of the vocabulary does not count
towards the converter's memory. Reads {"path", "texts"} as JSON; prints {"plain", "special", "broken_templates"}: the
token ids of each text without and with special tokens parsed, and what is wrong with a template by its key.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

LOG_LEVEL_ERROR: Final = 4  # ggml.h: GGML_LOG_LEVEL_ERROR
TEMPLATE_KEY: Final = "tokenizer.chat_template"


def ask(path: str, texts: list[str]) -> dict[str, Any]:
    """The answer described above; only the vocabulary of the file is loaded.

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
        "plain": [_tokenize(vocab, text, parse_special=False) for text in texts],
        "special": [_tokenize(vocab, text, parse_special=True) for text in texts],
        "broken_templates": dict(_broken_templates(model)),
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


def _broken_templates(model: Any) -> Iterator[tuple[str, str]]:
    """Those at which llama-cpp-python gives up loading the file."""
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    for i in range(llama_cpp.llama_model_meta_count(model)):
        key = _text(llama_cpp.llama_model_meta_key_by_index, model, i)
        if key != TEMPLATE_KEY and not key.startswith(f"{TEMPLATE_KEY}."):
            continue
        template = _text(llama_cpp.llama_model_meta_val_str_by_index, model, i)
        try:
            Jinja2ChatFormatter(template=template, eos_token="", bos_token="")
        except Exception as error:  # Jinja compiles a template to Python, which can fail in many ways
            line = getattr(error, "lineno", None)
            yield key, f"{f'line {line}: ' if line else ''}{error}"


def _text(get: Callable[..., int], *arguments: Any) -> str:
    """A string of llama.cpp, which says how long it is."""
    buffer = ctypes.create_string_buffer(get(*arguments, None, 0) + 1)
    get(*arguments, buffer, len(buffer))
    return buffer.value.decode(errors="replace")


def main() -> None:
    """Standard input to standard output; exits with what llama.cpp says if it does not load the vocabulary."""
    try:
        print(json.dumps(ask(**json.load(sys.stdin))))
    except ValueError as error:
        sys.exit(str(error))
