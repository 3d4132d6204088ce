"""A random model of 225M parameters and 128k tokens, its prompts, and the command line of what is measured on it.

Its weights are noise, which costs as much to multiply as any other; its prompts are words of its own vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from refusal_edge.keys import Stamp
from refusal_edge.policy import Category

N_VOCAB, WIDTH, FEED_FORWARD, HEADS, LAYERS = 128_262, 640, 1_728, 10, 12
N_SPECIAL = 259
SYSTEM_WORDS, PROMPT_WORDS = 96, 8
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}w1 w2 {{ message['content'] }} w3 {% endfor %}"
    "{% if add_generation_prompt %}w1 w4 {% endif %}"
)


def run(document: str, measure: Callable[[Path, argparse.Namespace], dict[str, Any]], **counts: int) -> int:
    """Prints what `measure` finds on the model; `counts` are options of its own with their defaults."""
    parser = argparse.ArgumentParser(description=document.split("\n")[0])
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--gpu-layers", type=int, default=0, metavar="N", help="layers on a GPU (default: none)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(write_model(Path(folder) / "random.gguf"), args)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:24} {value}")
    return 0


def make_conversations(rng: np.random.Generator, n: int) -> list[list[dict[str, str]]]:
    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(10, 50_000, size=count))

    system = {"role": "system", "content": words(SYSTEM_WORDS)}
    return [[system, {"role": "user", "content": words(PROMPT_WORDS)}] for _ in range(n)]


def write_model(path: Path, seed: int = 3) -> Path:
    """A Llama of noise in float16 with its own output matrix, control tokens last."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(N_VOCAB)
    add_vocabulary(writer)
    slugs = ("humanizing", "incomplete", "indeterminate", "safety", "unsupported")
    categories = tuple(Category(slug, N_VOCAB - 6 + i) for i, slug in enumerate(slugs))
    stamp = Stamp(N_VOCAB - 1, categories, min_control_mass=0.0)
    for key, value, kind in stamp.to_kv():
        writer.add_key_value(key, value, kind)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape, dtype=np.float32) * shape[-1] ** -0.5).astype(np.float16))

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    add("token_embd.weight", N_VOCAB, WIDTH)
    add("output.weight", N_VOCAB, WIDTH)
    add_norm("output_norm.weight")
    for i in range(LAYERS):
        add_norm(f"blk.{i}.attn_norm.weight")
        add_norm(f"blk.{i}.ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", WIDTH, WIDTH)
        add(f"blk.{i}.ffn_gate.weight", FEED_FORWARD, WIDTH)
        add(f"blk.{i}.ffn_up.weight", FEED_FORWARD, WIDTH)
        add(f"blk.{i}.ffn_down.weight", WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += ["\u2581w", *(f"\u2581w{i}" for i in range(N_VOCAB - N_SPECIAL - 1))]  # each is its prefix and a digit
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(len(token)) for token in tokens])
    writer.add_token_types(types + [gguf.TokenType.NORMAL] * (N_VOCAB - N_SPECIAL))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
