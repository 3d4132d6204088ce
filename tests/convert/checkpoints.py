"""Tiny random Hugging Face checkpoints of every family, the same bytes every time, written without torch.

write_checkpoint(folder, "gemma3", tied=True, pad_to=64)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

CONTROL_TEXTS = (
    " [Humanizing requests]",
    " [Incomplete requests]",
    " [Indeterminate requests]",
    " [Requests with safety concerns]",
    " [Unsupported requests]",
    " [respond]",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "granite": "GraniteForCausalLM",
}
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Shape:
    """How large the model is."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 128


@dataclass(frozen=True)
class Recipe:
    """What kind of checkpoint to write."""

    arch: str = "llama"
    shape: Shape = Shape()
    vocab: str = "bpe"
    tokens: Sequence[str] = CONTROL_TEXTS
    special: bool = False
    tied: bool = False
    pad_to: int = 1
    dtype: str = "BF16"
    shards: int = 2
    biases: Sequence[str] = ()
    seed: int = 1
    scale: float = 0.02
    config: dict[str, Any] = field(default_factory=dict)
    leave_out: Sequence[str] = ()
    card: str = ""


def write_checkpoint(folder: Path, arch: str = "llama", **options: Any) -> Path:
    """Writes a checkpoint of family `arch` into the new folder `folder`; `options` are those of `Recipe`."""
    recipe = Recipe(arch=arch, **options)
    folder.mkdir(parents=True)
    ids = {"bpe": _write_bpe, "spm": _write_spm}[recipe.vocab](folder, recipe)
    n_rows = -(-ids.n_tokens // recipe.pad_to) * recipe.pad_to
    write_json(folder / "config.json", _config(recipe, n_rows, ids))
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.05, "repetition_penalty": 1.1}
    write_json(folder / "generation_config.json", {"do_sample": True, **sampling})
    if recipe.card:
        (folder / "README.md").write_text(recipe.card, encoding="utf-8")
    write_weights(folder, _tensors(recipe, n_rows), recipe.dtype, recipe.shards)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


# Configuration


def _config(recipe: Recipe, n_rows: int, ids: TokenIds) -> dict[str, Any]:
    shape = recipe.shape
    config: dict[str, Any] = {
        "architectures": [CLASSES[recipe.arch]],
        "model_type": "gemma3_text" if recipe.arch == "gemma3" else recipe.arch,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": n_rows,
        "tie_word_embeddings": recipe.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        "pad_token_id": ids.eos,
    }
    if recipe.arch.startswith("gemma"):
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 32,
            "query_pre_attn_scalar": shape.head_dim,
        }
    if recipe.arch == "granite":
        config |= {
            "attention_multiplier": 0.25,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        }
    if recipe.arch == "phi3":
        config |= {"original_max_position_embeddings": 512, "sliding_window": 256}
    return {key: value for key, value in (config | recipe.config).items() if key not in recipe.leave_out}


# Weights


def _tensors(recipe: Recipe, n_rows: int) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """(name, values) of every weight; each has a generator of its own, so that adding one changes no other."""
    shape, named = recipe.shape, list[tuple[str, npt.NDArray[np.float32]]]()

    def add(name: str, *dims: int, around: float = 0.0) -> None:
        generator = np.random.default_rng([recipe.seed, len(named)])
        named.append(
            (name, generator.standard_normal(dims, dtype=np.float32) * np.float32(recipe.scale) + np.float32(around))
        )

    norm = 0.0 if recipe.arch.startswith("gemma") else 1.0
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    add("model.embed_tokens.weight", n_rows, shape.hidden)
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        for module, (rows, cols) in _matrices(recipe.arch, shape, queries, keys).items():
            add(f"{layer}{module}.weight", rows, cols)
            if module in recipe.biases:
                add(f"{layer}{module}.bias", rows)
        for module, size in _norms(recipe.arch, shape, queries, keys).items():
            add(f"{layer}{module}.weight", size, around=norm)
    add("model.norm.weight", shape.hidden, around=norm)
    if not recipe.tied:
        add("lm_head.weight", n_rows, shape.hidden)
    return named


def _matrices(arch: str, shape: Shape, queries: int, keys: int) -> dict[str, tuple[int, int]]:
    out = {"self_attn.o_proj": (shape.hidden, queries), "mlp.down_proj": (shape.hidden, shape.ffn)}
    if arch == "phi3":
        return {
            "self_attn.qkv_proj": (queries + 2 * keys, shape.hidden),
            "mlp.gate_up_proj": (2 * shape.ffn, shape.hidden),
            **out,
        }
    return {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        **out,
    }


def _norms(arch: str, shape: Shape, queries: int, keys: int) -> dict[str, int]:
    names = {
        "gemma2": ("input", "post_attention", "pre_feedforward", "post_feedforward"),
        "gemma3": ("input", "post_attention", "pre_feedforward", "post_feedforward"),
        "olmo2": ("post_attention", "post_feedforward"),
    }.get(arch, ("input", "post_attention"))
    norms = {f"{name}_layernorm": shape.hidden for name in names}
    if arch in ("qwen3", "gemma3"):
        norms |= {"self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim}
    if arch == "olmo2":
        norms |= {"self_attn.q_norm": queries, "self_attn.k_norm": keys}
    return norms


def write_weights(
    folder: Path, tensors: Sequence[tuple[str, npt.NDArray[np.float32]]], dtype: str, shards: int
) -> None:
    """`tensors` as one safetensors file, or as `shards` of them with their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = tensors[i * len(tensors) // shards : (i + 1) * len(tensors) // shards]
        write_safetensors(folder / name, part, dtype)
        weight_map |= {tensor: name for tensor, _ in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_safetensors(path: Path, tensors: Iterable[tuple[str, npt.NDArray[Any]]], dtype: str = "F32") -> None:
    """float32 arrays, stored as `dtype`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = []
    end = 0
    for name, values in tensors:
        stored = to_stored(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [end, end + stored.nbytes]}
        end += stored.nbytes
        data.append(stored.tobytes())
    path.write_bytes(raw_safetensors(header, b"".join(data)))


def raw_safetensors(header: dict[str, Any] | bytes, data: bytes = b"", header_bytes: int | None = None) -> bytes:
    """A file with whatever header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if header_bytes is None else header_bytes) + text + data


def to_stored(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """float32 values rounded to `dtype`; bfloat16 as its bits, nearest even."""
    if dtype != "BF16":
        return values.astype(STORED[dtype])
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


# Tokenizers


class TokenIds(NamedTuple):
    n_tokens: int
    bos: int
    eos: int


def _added(token_id: int, content: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": token_id, "content": content, **flags}


def _write_bpe(folder: Path, recipe: Recipe) -> TokenIds:
    """256 bytes and a few merges, byte-level, cut like Llama 3."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    vocab = {alphabet[byte]: byte for byte in range(256)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("o", "n"), ("r", "e"), ("[", "re")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    bos, eos = (
        ("<|im_start|>", "<|endoftext|>")
        if recipe.arch.startswith("qwen")
        else ("<|begin_of_text|>", "<|end_of_text|>")
    )
    specials = [bos, eos, "<|eot_id|>"]
    added = [_added(len(vocab) + i, text, True) for i, text in enumerate(specials)]
    added += [_added(len(vocab) + len(specials) + i, text, recipe.special) for i, text in enumerate(recipe.tokens)]
    first, second = (
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": "AB"[i], "type_id": i}}] for i in (0, 1)
    )
    template = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {bos: {"id": bos, "ids": [added[0]["id"]], "tokens": [bos]}},
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": [" ".join(merge) for merge in merges]}
    _write_tokenizer_json(
        folder,
        added,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
        post_processor={"type": "Sequence", "processors": [byte_level, template]},
        decoder=byte_level,
        model=model,
    )
    _write_tokenizer_config(folder, added, "PreTrainedTokenizerFast", bos_token=bos, eos_token=eos)
    return TokenIds(len(vocab) + len(added), bos=len(vocab), eos=len(vocab) + 1)


def _write_spm(folder: Path, recipe: Recipe) -> TokenIds:
    """A SentencePiece model of 256 bytes, the ASCII letters and a few longer pieces, with both files."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    longer = ["in", "er", "th", "the", "▁the", "on", "▁a"]
    letters = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ[]"]
    pieces += [(text, -float(i), 1) for i, text in enumerate([*longer, *letters])]
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    merges = [
        f"{text[:cut]} {text[cut:]}"
        for text in longer
        for cut in range(1, len(text))
        if {text[:cut], text[cut:]} <= ids.keys()
    ]
    added = [_added(i, text, True) for i, (text, _, _) in enumerate(pieces[:3])]
    added += [_added(len(pieces) + i, text, recipe.special) for i, text in enumerate(recipe.tokens)]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    _write_tokenizer_json(
        folder,
        added,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        pre_tokenizer=None,
        post_processor=None,
        decoder={"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]},
        model={
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": merges,
        },
    )
    _write_tokenizer_config(
        folder,
        added,
        "LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=True,
        legacy=False,
    )
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    return TokenIds(len(pieces) + len(recipe.tokens), bos=1, eos=2)


def _write_tokenizer_json(folder: Path, added: list[dict[str, Any]], **parts: Any) -> None:
    write_json(
        folder / "tokenizer.json",
        {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts},
    )


def _write_tokenizer_config(folder: Path, added: list[dict[str, Any]], kind: str, **values: Any) -> None:
    decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": decoder,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
            "tokenizer_class": kind,
            **values,
        },
    )


def sentencepiece_model(pieces: Sequence[tuple[str, float, int]]) -> bytes:
    """A `ModelProto` by hand: pieces of (text, score, type), BPE with byte fallback."""

    def varint(n: int) -> bytes:
        low = bytearray()
        while n > 127:
            low.append(n & 127 | 128)
            n >>= 7
        return bytes([*low, n])

    def message(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    def integer(number: int, value: int) -> bytes:
        return varint(number << 3) + varint(value)

    body = b"".join(
        message(1, message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + integer(3, kind))
        for text, score, kind in pieces
    )
    trainer = (
        integer(3, 2) + integer(4, len(pieces)) + integer(35, 1) + integer(40, 0) + integer(41, 1) + integer(42, 2)
    )
    normalizer = message(1, b"identity") + integer(3, 1) + integer(4, 0) + integer(5, 1)
    return body + message(2, trainer) + message(3, normalizer)
