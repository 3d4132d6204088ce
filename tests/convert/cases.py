"""The checkpoints that are held against llama.cpp's converter and against transformers, and how files are compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints import Shape

from refusal_edge.gguf_file import GGUFArray, read_gguf

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
DEEP = Shape(layers=4)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LONGROPE = {"type": "longrope", "long_factor": [1.5] * 6, "short_factor": [1.0] * 6}


CARD = """---
license: other
license_name: tiny-licence
license_link: https://example.org/licence
language: [en, de]
tags: [refusal, "tiny"]
pipeline_tag: text-generation
base_model: some-org/Base-1B-Instruct
datasets:
- some-org/questions-v2
- https://example.org/answers
---
# A model
"""
GEMMA3 = {"arch": "gemma3", "vocab": "spm", "tied": True, "shape": Shape(layers=6)}


@dataclass(frozen=True)
class Case:
    """A checkpoint to write, and the types to convert it to."""

    options: dict[str, Any] = field(default_factory=dict)
    outtypes: tuple[str, ...] = ("f16",)


CASES = {
    "llama": Case({"arch": "llama"}, ("f32", "f16", "bf16", "q8_0")),
    "llama-f32": Case({"arch": "llama", "dtype": "F32", "shards": 1}, ("f32", "f16", "bf16", "q8_0")),
    "llama-f16-tied": Case({"arch": "llama", "dtype": "F16", "tied": True, "pad_to": 64, "special": True}),
    "llama-card": Case(
        {"arch": "llama", "card": CARD, "config": {"_name_or_path": "some-org/Some-Model-7B-Chat-v1.2"}}
    ),
    "llama-llama3": Case({"arch": "llama", "config": {"rope_scaling": LLAMA3, "rope_theta": 500000.0}}),
    "llama-linear": Case({"arch": "llama", "config": {"rope_scaling": {"type": "linear", "factor": 4.0}}}),
    "llama-yarn": Case(
        {
            "arch": "llama",
            "config": {
                "rope_theta": None,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 20000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 256,
                },
            },
        }
    ),
    "llama-biases": Case(
        {
            "arch": "llama",
            "biases": (*QKV, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
            "config": {"attention_bias": True, "mlp_bias": True},
        }
    ),
    "llama-spm": Case({"arch": "llama", "vocab": "spm"}),
    "mistral": Case({"arch": "mistral", "vocab": "spm", "config": {"head_dim": 32}, "shape": Shape(head_dim=32)}),
    "qwen2": Case({"arch": "qwen2", "biases": QKV, "tied": True}),
    "qwen3": Case({"arch": "qwen3", "shape": Shape(head_dim=32), "pad_to": 128}),
    "gemma2": Case({"arch": "gemma2", "vocab": "spm", "tied": True, "shape": DEEP}),
    "gemma3": Case(
        {
            "arch": "gemma3",
            "vocab": "spm",
            "tied": True,
            "shape": Shape(layers=6),
            "config": {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        }
    ),
    "gemma3-linear": Case(
        {
            **GEMMA3,
            "config": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 2e4},
            "leave_out": ("rope_theta", "tie_word_embeddings", "hidden_activation"),
        }
    ),
    "gemma3-nested": Case(
        {
            **GEMMA3,
            "config": {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
                }
            },
            "leave_out": ("rope_theta",),
        }
    ),
    "phi3": Case({"arch": "phi3", "vocab": "spm"}),
    "phi3-longrope": Case(
        {"arch": "phi3", "vocab": "spm", "config": {"rope_scaling": LONGROPE, "partial_rotary_factor": 0.75}}
    ),
    "smollm3": Case({"arch": "smollm3", "shape": DEEP, "tied": True}),
    "olmo2": Case({"arch": "olmo2"}),
    "olmo2-tied": Case({"arch": "olmo2", "tied": True}, outtypes=()),  # llama.cpp cannot load what its converter writes
    "qwen2-yarn": Case(
        {
            "arch": "qwen2",
            "biases": QKV,
            "config": {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}},
        }
    ),
    "llama-defaults": Case(
        {
            "arch": "llama",
            "shape": Shape(kv_heads=4),
            "leave_out": ("head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings"),
        }
    ),
    "smollm3-defaults": Case(
        {"arch": "smollm3", "shape": DEEP, "tied": True, "leave_out": ("head_dim", "rope_theta", "tie_word_embeddings")}
    ),
    "granite-llama3": Case(  # llama.cpp computes it, its converter does not write it
        {"arch": "granite", "config": {"rope_scaling": LLAMA3}, "leave_out": ("logits_scaling",)}, outtypes=()
    ),
    "granite": Case({"arch": "granite", "tied": True}),
}


def digest_folder(folder: Path) -> str:
    """One hash for all files of a checkpoint, to tell a changed input from a changed conversion."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def digest_file(path: Path) -> dict[str, dict[str, Any]]:
    """Every tensor of a GGUF file as "TYPE [shape] hash" and every key with its value, arrays as "[n] hash"."""
    with read_gguf(path) as file:
        data = path.read_bytes()
        tensors = {
            t.name: f"{t.type_name} {list(t.shape)} {_hash(data[t.offset : t.offset + t.n_bytes])}"
            for t in file.tensors.values()
        }
        keys = {key: _shown(value) for key, value in file.kv.items()}
    return {"tensors": tensors, "keys": keys}


def _shown(value: Any) -> Any:
    return f"[{len(value)}] {_hash(repr(list(value)).encode())}" if isinstance(value, GGUFArray) else value


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
