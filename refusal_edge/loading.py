"""What must hold of a file, and of the context asked for, before llama.cpp gets to see them.

llama.cpp trusts a file more than it should: some broken ones end the process instead of failing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import llama_cpp

from refusal_edge.errors import FormatError, InvalidRequestError
from refusal_edge.gguf_file import ARCHITECTURE, GGML_TYPES, GGUFArray, GGUFFile, read_gguf
from refusal_edge.numbers import as_integer, shown

MAX_CONTEXT: Final = 2**31 - 1
_F16: Final = 1


def check_loadable(path: str, arguments: Mapping[str, Any]) -> None:
    """Checks a model file and those arguments of `llama_cpp.Llama` that size the context.

    Raises:
        FormatError: no file, no GGUF file, or one that llama.cpp cannot cope with.
        InvalidRequestError: `n_ctx` is out of range, or needs more memory than the machine has.
        OSError: the file cannot be read.
    """
    if os.path.isdir(path):
        raise FormatError(f"{path}: a folder, expected a GGUF file: name the file in it")
    if not os.path.isfile(path):
        raise FormatError(f"{path}: no such file")
    n_ctx = as_integer(arguments.get("n_ctx", 512))
    if n_ctx is None or not 0 <= n_ctx <= MAX_CONTEXT:
        raise InvalidRequestError(
            f"n_ctx: expected an integer in [0, {MAX_CONTEXT}] (0: the model's own), got {shown(arguments['n_ctx'])}"
        )
    with read_gguf(path) as file:
        _check_texts(file)
        _check_tokens(file)
        if not arguments.get("vocab_only"):
            _check_context(file, n_ctx, arguments)


def _check_texts(file: GGUFFile) -> None:
    """llama-cpp-python reads no metadata at all where one value is not UTF-8."""
    for key, value in file.kv.items():
        if isinstance(value, str) and "\ufffd" in value and value.encode() not in file.raw(*file.kv_spans[key]):
            raise FormatError(f"{file.path}: key {key!r}: expected UTF-8 text; convert the model again")


def _check_tokens(file: GGUFFile) -> None:
    """llama.cpp aborts where two tokens have one text; it gives those without text a name."""
    tokens = file.kv.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, GGUFArray):
        return
    texts = [text for text in tokens if text]
    if len(set(texts)) == len(texts):
        return
    ((twice, _),) = Counter(texts).most_common(1)
    raise FormatError(
        f"{file.path}: key 'tokenizer.ggml.tokens': expected different tokens, "
        f"got {shown(twice.decode(errors='replace'))} twice"
    )


def _check_context(file: GGUFFile, n_ctx: int, arguments: Mapping[str, Any]) -> None:
    arch = file.text(ARCHITECTURE) or ""
    if n_ctx == 0:
        n_ctx = file.integer(f"{arch}.context_length") or 0
        if not 0 < n_ctx <= MAX_CONTEXT:
            raise FormatError(
                f"{file.path}: key '{arch}.context_length': expected a length in [1, {MAX_CONTEXT}], got {n_ctx}; "
                "give n_ctx"
            )
    needed = n_ctx * _bytes_per_token(file, arch, arguments)
    memory = _memory()
    if memory is not None and needed > memory and not llama_cpp.llama_supports_gpu_offload():
        raise InvalidRequestError(
            f"n_ctx: a context of {n_ctx} tokens needs {needed / 2**30:.1f} GiB, this machine has "
            f"{memory / 2**30:.1f} GiB; choose a smaller n_ctx"
        )


def _bytes_per_token(file: GGUFFile, arch: str, arguments: Mapping[str, Any]) -> float:
    """At least what llama.cpp and llama-cpp-python hold for a position: keys, values, an id, with logits_all logits."""

    def integer(key: str, default: int = 0) -> int:
        return max(file.integer(f"{arch}.{key}") or default, 0)

    layers, heads = integer("block_count"), file.kv.get(f"{arch}.attention.head_count_kv")
    if heads is None:
        heads = integer("attention.head_count")
    if isinstance(heads, GGUFArray):
        n_heads = sum(int(n) for n in heads if isinstance(n, int))
    else:
        n_heads = layers * max(int(heads), 0)
    width = integer("embedding_length") // max(integer("attention.head_count"), 1)
    row = sum(
        integer(f"attention.{name}_length", width) * _element_bytes(arguments.get(f"type_{name[0]}"))
        for name in ("key", "value")
    )
    logits = 4 * (file.n_vocab() or 0) if arguments.get("logits_all") else 0
    return 4 + n_heads * row + logits


def _element_bytes(ggml_type: object) -> float:
    number = as_integer(ggml_type)
    _, block, block_bytes = GGML_TYPES.get(_F16 if number is None else number, GGML_TYPES[_F16])
    return block_bytes / block


def _memory() -> int | None:
    """Bytes of physical memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
