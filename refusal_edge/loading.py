"""What must hold of a file, and of the arguments that it is loaded with, before llama.cpp gets to see them.

llama.cpp trusts both more than it should: some broken ones end the process instead of failing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import llama_cpp

from refusal_edge.errors import FormatError, InvalidRequestError
from refusal_edge.gguf_file import GGML_TYPES, GGUFArray, GGUFFile, ValueType, read_gguf
from refusal_edge.gguf_limits import MAX_LENGTH, check_limits
from refusal_edge.numbers import as_integer, shown

MAX_CONTEXT: Final = 2**31 - 1
MAX_THREADS: Final = 512
"""ggml's GGML_MAX_N_THREADS: the length of its tables."""
CACHE_TYPES: Final = (0, 1, 30, 8, 2, 3, 20, 6, 7)
"""The types that llama.cpp's own programs offer for keys and values; others abort in the first llama_decode."""
_F16: Final = 1
_OTHER_LAYERS: Final = ("full_attention_interval", "attention.shared_kv_layers", "ssm.state_size")
_INTEGERS: Final = {
    "n_ctx": (512, 0, MAX_CONTEXT, " (0: the model's own)"),
    "n_batch": (512, 1, MAX_CONTEXT, ""),
    "n_threads": (None, -1, MAX_THREADS, " or None"),
    "n_threads_batch": (None, -1, MAX_THREADS, " or None"),
}


def check_loadable(path: str, arguments: Mapping[str, Any]) -> None:
    """Checks a model file and those arguments of `llama_cpp.Llama` that llama.cpp does not check.

    Raises:
        FormatError: no file, no GGUF file, or one that llama.cpp cannot cope with.
        InvalidRequestError: an argument out of range, or a context that needs more memory than the machine has.
        OSError: the file cannot be read.
    """
    if os.path.isdir(path):
        raise FormatError(f"{path}: a folder, expected a GGUF file: name the file in it")
    if not os.path.isfile(path):
        raise FormatError(f"{path}: no such file")
    _check_integers(arguments)
    with read_gguf(path) as file:
        _check_texts(file)
        _override(file, arguments.get("kv_overrides"))
        vocab_only = bool(arguments.get("vocab_only"))
        check_limits(file, vocab_only=vocab_only)
        if not vocab_only:
            for name in ("key", "value"):
                _check_cache_type(name, file, arguments)
            _check_context(file, arguments)
        if adapter := arguments.get("lora_path"):
            _check_adapter(adapter, file)


def _check_integers(arguments: Mapping[str, Any]) -> None:
    for name, (default, low, high, note) in _INTEGERS.items():
        value = arguments.get(name, default)
        if value is None and default is None:
            continue
        number = as_integer(value)
        if number is None or not low <= number <= high:
            raise InvalidRequestError(f"{name}: expected an integer in [{low}, {high}]{note}, got {shown(value)}")


def _override(file: GGUFFile, overrides: object) -> None:
    """Puts into `file.kv` what llama.cpp would read instead: it ignores a value of another type."""
    if overrides is None:
        return
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise InvalidRequestError(f"kv_overrides: expected an object of key -> value, got {shown(overrides)}")
    for key, value in overrides.items():
        if key not in file.kv or type(file.kv[key]) is type(value):
            file.kv[key] = value


def _check_texts(file: GGUFFile) -> None:
    """llama-cpp-python reads no metadata at all where one value is not UTF-8."""
    for key, value in file.kv.items():
        if isinstance(value, str) and "\ufffd" in value and value.encode() not in file.raw(*file.kv_spans[key]):
            raise FormatError(f"{file.path}: key {key!r}: expected UTF-8 text; convert the model again")


def _check_context(file: GGUFFile, arguments: Mapping[str, Any]) -> None:
    n_ctx = int(arguments.get("n_ctx", 512))
    if n_ctx == 0 and (n_ctx := file.hparam("context_length")) == 0:
        raise file.wrong(f"{file.arch}.context_length", f"a length in [1, {MAX_LENGTH}]", f"{n_ctx}; give n_ctx")
    needed = n_ctx * _bytes_per_token(file, arguments)
    memory = _memory()
    if memory is not None and needed > memory and not llama_cpp.llama_supports_gpu_offload():
        raise InvalidRequestError(
            f"n_ctx: a context of {n_ctx} tokens needs {needed / 2**30:.1f} GiB, this machine has "
            f"{memory / 2**30:.1f} GiB; choose a smaller n_ctx"
        )


def _bytes_per_token(file: GGUFFile, arguments: Mapping[str, Any]) -> float:
    """At least what llama.cpp and llama-cpp-python hold for a position: keys, values, an id, with logits_all logits."""
    logits = 4 * (file.n_vocab() or 0) if arguments.get("logits_all") else 0
    window = arguments.get("swa_full") is False and file.hparam("attention.sliding_window") > 0
    if window or any(f"{file.arch}.{name}" in file.kv for name in _OTHER_LAYERS):
        return 4 + logits  # not every layer holds keys and values of every position
    heads = file.kv.get(f"{file.arch}.attention.head_count_kv")
    if isinstance(heads, GGUFArray):
        n_heads = sum(int(n) for n in heads if isinstance(n, int))
    else:
        n_heads = file.hparam("block_count") * _kv_heads(file)
    row = sum(file.head_length(name) * _element_bytes(arguments.get(f"type_{name[0]}")) for name in ("key", "value"))
    return 4 + max(n_heads * row, 0) + logits


def _kv_heads(file: GGUFFile) -> int:
    return file.hparam("attention.head_count_kv", file.hparam("attention.head_count"))


def _element_bytes(ggml_type: object) -> float:
    number = as_integer(ggml_type)
    _, block, block_bytes = GGML_TYPES.get(_F16 if number is None else number, GGML_TYPES[_F16])
    return block_bytes / block


def _check_cache_type(name: str, file: GGUFFile, arguments: Mapping[str, Any]) -> None:
    """The type of the "key" or "value" cache."""
    argument = f"type_{name[0]}"
    if (value := arguments.get(argument)) is None:
        return
    number = as_integer(value)
    if number not in CACHE_TYPES:
        known = ", ".join(f"{i} ({GGML_TYPES[i][0]})" for i in CACHE_TYPES)
        raise InvalidRequestError(f"{argument}: expected one of {known}, or None, got {shown(value)}")
    type_name, block, _ = GGML_TYPES[number]
    by_head = bool(arguments.get("flash_attn"))
    if block > 1 and name == "value" and not by_head:
        raise InvalidRequestError(f"{argument}: {type_name} needs flash_attn=True")
    row = file.head_length(name) * (1 if by_head else _kv_heads(file))
    if row % block:
        raise InvalidRequestError(
            f"{argument}: expected a type whose blocks fill a row of {row}, got {type_name} with blocks of {block}"
        )


def _check_adapter(path: object, model: GGUFFile) -> None:
    """llama.cpp reads these keys before it looks at their types."""
    if not isinstance(path, str) or not os.path.isfile(path):
        raise InvalidRequestError(f"lora_path: expected a GGUF file, got {shown(path)}")
    with read_gguf(path) as file:
        expected = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": model.arch}
        for key, value in expected.items():
            if file.kv.get(key) != value:
                raise file.wrong(key, f"{value!r}, as in a LoRA adapter for this model")
        if file.kv_types.get("adapter.lora.alpha") is not ValueType.FLOAT32:
            raise file.wrong("adapter.lora.alpha", "a float32")


def _memory() -> int | None:
    """Bytes of physical memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
