"""Values in a GGUF file that llama.cpp does not survive: it ends the process, or hangs, where it should fail.

They are what its sources assert: src/llama-model.cpp (load_hparams), src/llama-vocab.cpp (load, byte_to_token), and for
the architectures that `refusal-edge convert` writes their files in src/models. Other architectures have more of them.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from refusal_edge.errors import FormatError
from refusal_edge.gguf_file import MAX_BLOCKS, GGUFArray, GGUFFile, ValueType, check_values
from refusal_edge.numbers import shown

MAX_LENGTH: Final = 1 << 25
"""Of a context or a window. llama-cpp-python makes an array of `context_length` ids for each text that it tokenizes."""
MAX_EXPERTS: Final = 1024
TENSOR_ALIGNMENT: Final = 32
ROPE_SCALINGS: Final = ("none", "linear", "yarn", "longrope")
NO_TOKENIZER: Final = ("none", "no_vocab")
CHAT_TOKENIZERS: Final = ("gpt2", "llama", "t5", "gemma4", "plamo2", "hybriddna", "whitespace")
WHOLE_HEAD_ROTATED: Final = ("llama", "qwen2", "qwen3", "smollm3", "olmo2", "granite")
SLIDING_WINDOW: Final = ("gemma2", "gemma3", "olmo2")
WINDOWED: Final = (*SLIDING_WINDOW, "phi3")
KV: Final = ("key", "value")
CHECKED: Final = frozenset({*WHOLE_HEAD_ROTATED, *SLIDING_WINDOW, "phi3"})

_TOKENS: Final = "tokenizer.ggml.tokens"
_TOKENIZER: Final = "tokenizer.ggml.model"


def check_limits(file: GGUFFile, *, vocab_only: bool) -> None:
    """Checks what stands in `file.kv`, changed or not.

    Raises:
        FormatError: names the key, what is expected and what it holds.
    """
    check_values(file)
    _check_tokenizer(file)
    _check_tokens(file)
    if vocab_only:
        return
    _check_numbers(file)
    _check_experts(file)
    if file.arch in CHECKED:
        _check_heads(file)
    first = next(iter(file.tensors.values()), None)
    if first is not None and first.offset % TENSOR_ALIGNMENT:
        raise file.wrong("general.alignment", f"a multiple of {TENSOR_ALIGNMENT}, or tensors that lie on one")


def _check_tokenizer(file: GGUFFile) -> None:
    model = file.text(_TOKENIZER)
    allowed = CHAT_TOKENIZERS if file.arch in CHECKED else None
    if model in NO_TOKENIZER or (model is not None and allowed is not None and model not in allowed):
        raise file.wrong(_TOKENIZER, f"one of {', '.join(CHAT_TOKENIZERS)}")


def _check_tokens(file: GGUFFile) -> None:
    """No two tokens with one text, of those without text too, which get a name; what SentencePiece does not find is
    spelled in bytes, all of which must be there."""
    tokens = file.kv.get(_TOKENS)
    if not isinstance(tokens, GGUFArray) or tokens.element_type is not ValueType.STRING:
        return
    texts = [text or b"[EMPTY_%d]" % i for i, text in enumerate(tokens)]
    known = set(texts)
    if len(known) < len(texts):
        ((twice, _),) = Counter(texts).most_common(1)
        raise file.wrong(_TOKENS, "different tokens", f"{shown(twice.decode(errors='replace'))} twice")
    if file.text(_TOKENIZER) == "llama":
        missing = [b for b in range(256) if b"<0x%02X>" % b not in known and bytes([b]) not in known]
        if missing:
            raise file.wrong(_TOKENS, "a token for each byte, <0x00> to <0xFF>", f"none for <0x{missing[0]:02X}>")


def _check_numbers(file: GGUFFile) -> None:
    n_blocks = file.hparam("block_count", 1)
    _check_range(file, "block_count", 1, MAX_BLOCKS)
    _check_range(file, "nextn_predict_layers", 0, n_blocks)
    _check_range(file, "context_length", 0, MAX_LENGTH)
    if file.arch in WINDOWED:
        _check_range(file, "attention.sliding_window", 0, MAX_LENGTH)
    for name in ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon"):
        value = file.kv.get(key := f"{file.arch}.attention.{name}")
        if isinstance(value, float) and value < 0:
            raise file.wrong(key, "a number >= 0")
    scaling = file.text(key := f"{file.arch}.rope.scaling.type")
    if scaling is not None and scaling not in ROPE_SCALINGS:
        raise file.wrong(key, f"one of {', '.join(ROPE_SCALINGS)}")


def _check_range(file: GGUFFile, name: str, low: int, high: int) -> None:
    if not low <= file.hparam(name, low) <= high:
        raise file.wrong(f"{file.arch}.{name}", f"a number in [{low}, {high}]")


def _check_experts(file: GGUFFile) -> None:
    if file.arch.startswith("hunyuan"):  # which may say 1 for "no experts"
        return
    _check_range(file, "expert_count", 0, MAX_EXPERTS)
    n, n_groups = file.hparam("expert_count"), file.hparam("expert_group_count")
    if n_groups and not (n_groups < n and n % n_groups == 0):
        raise file.wrong(f"{file.arch}.expert_group_count", f"a divisor of {n} (expert_count) below it")
    if n_groups > 1 and not 0 < file.hparam("expert_group_used_count") < n_groups:
        raise file.wrong(f"{file.arch}.expert_group_used_count", f"a number in [1, {n_groups - 1}]")
    used = file.kv.get(key := f"{file.arch}.expert_used_count", 0)
    most = max((int(i) for i in used if isinstance(i, int)), default=0) if isinstance(used, GGUFArray) else used
    if type(most) is int and not min(n, 1) <= most <= n:
        raise file.wrong(key, f"a number in [{min(n, 1)}, {n}] (expert_count)", most)


def _check_heads(file: GGUFFile) -> None:
    """How many heads there are, how long keys and values are, and how much of them is rotated."""
    n_heads = _of_each_layer(file, "attention.head_count", 0)
    n_groups = _of_each_layer(file, "attention.head_count_kv", n_heads)
    if n_groups < 1 or n_heads % n_groups:
        raise file.wrong(f"{file.arch}.attention.head_count_kv", f"a divisor of {n_heads} (head_count)", n_groups)
    key, value = (file.hparam(f"attention.{name}_length", file.hparam("embedding_length") // n_heads) for name in KV)
    if key != value and not file.arch.startswith("gemma"):
        raise file.wrong(f"{file.arch}.attention.key_length", f"{value}, the length of values", key)
    for matrix, n, length in (("attn_q", n_heads, key), ("attn_k", n_groups, key), ("attn_v", n_groups, value)):
        tensor = file.tensors.get(f"blk.0.{matrix}.weight")
        if tensor is not None and tensor.shape[-1] != n * length:
            raise FormatError(
                f"{file.path}: tensor {tensor.name!r}: expected {n} heads of {length} rows, got {tensor.shape[-1]} rows"
            )
    rotated = file.hparam("rope.dimension_count", key)
    if rotated != key and file.arch in WHOLE_HEAD_ROTATED:
        raise file.wrong(f"{file.arch}.rope.dimension_count", f"{key}, the length of keys")
    key_swa = file.hparam("attention.key_length_swa", key)
    rotated_swa = file.hparam("rope.dimension_count_swa", rotated)
    for name, n, length in (("", rotated, key), ("_swa", rotated_swa, key_swa)):
        if not 2 <= n <= length or n % 2:
            raise file.wrong(f"{file.arch}.rope.dimension_count{name}", f"an even number in [2, {length}]", n)
    if file.arch in SLIDING_WINDOW and file.hparam("attention.sliding_window_pattern") == 1:
        raise file.wrong(f"{file.arch}.attention.sliding_window_pattern", "0 or a number >= 2: some layer has a window")


def _of_each_layer(file: GGUFFile, name: str, default: int) -> int:
    """A number of heads; these architectures do not compute layers that differ."""
    key = f"{file.arch}.{name}"
    n = file.kv.get(key, default)
    if isinstance(n, GGUFArray):
        numbers = {int(i) for i in n if isinstance(i, int)} if 0 < len(n) <= MAX_BLOCKS else set()
        n = numbers.pop() if len(numbers) == 1 else None
    if type(n) is not int or n < 1:
        raise file.wrong(key, "a number >= 1, the same for each layer")
    return n
