"""decide_batch against decide one by one: short prompts under one system prompt, a random model of 128k tokens.

    python bench/bench_batch.py [--prompts 64] [--rounds 3] [--threads N] [--gpu-layers N] [--json]

Three contenders: `decide` from an empty context (every prompt computed in full), `decide` as it is in a loop (it keeps
the system prompt that its context holds) and `decide_batch` (keeps it too, and puts many prompts into one
llama_decode). Before anything is timed they must agree on every prompt: same outcome, scores within 1e-3 (on a GPU,
where a batch of another shape is another matrix multiplication, partly in half precision, 1e-2). Not measured: loading,
and the answers themselves. The model is made here (weights are noise, which costs as much to multiply as any others),
so the prompts are words of its own vocabulary. On a CPU a dozen tokens already keep the arithmetic busy, so most of the
gain is the shared prefix; a GPU gains more from the batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_VOCAB, WIDTH, FEED_FORWARD, HEADS, LAYERS = 128_262, 640, 1_728, 10, 12
N_SPECIAL = 259
SYSTEM_WORDS, PROMPT_WORDS = 96, 8
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}w1 w2 {{ message['content'] }} w3 {% endfor %}"
    "{% if add_generation_prompt %}w1 w4 {% endif %}"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
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


def measure(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds in which the contenders take turns."""
    from refusal_edge import Llama

    settings = {"n_threads": args.threads, "n_threads_batch": args.threads, "n_gpu_layers": args.gpu_layers}
    llm = Llama(path, n_ctx=1024, verbose=False, **settings)
    rng = np.random.default_rng(1)
    conversations = make_conversations(rng, args.prompts)
    split_in_half(llm, conversations)
    one, many = [llm.decide(c) for c in conversations], llm.decide_batch(conversations)
    tolerance = 1e-2 if args.gpu_layers else 1e-3
    check_agreement(one, many, tolerance)

    def from_empty() -> list[Any]:
        return [llm.decide(c) for c in conversations if emptied(llm)]

    check_agreement(from_empty(), many, tolerance)
    contenders: dict[str, Callable[[], object]] = {
        "from empty": from_empty,
        "one by one": lambda: [llm.decide(c) for c in conversations],
        "decide_batch": lambda: llm.decide_batch(conversations),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, function in contenders.items():
            seconds[name].append(timed(function))
    rates = {name: args.prompts / statistics.median(values) for name, values in seconds.items()}
    import llama_cpp

    return {
        "machine": f"{platform.machine()}, {args.threads} threads, {args.gpu_layers} layers on a GPU",
        "llama-cpp-python": llama_cpp.__version__,
        "parameters": llama_cpp.llama_model_n_params(llm._model.model),
        "prompts": args.prompts,
        "largest score difference": max(abs(a.scores[s] - b.scores[s]) for a, b in zip(one, many) for s in a.scores),
        **{f"{name}, prompts/s": round(rate, 2) for name, rate in rates.items()},
        "ratio to from empty": round(rates["decide_batch"] / rates["from empty"], 2),
        "ratio to one by one": round(rates["decide_batch"] / rates["one by one"], 2),
    }


def emptied(llm: Any) -> bool:
    """Forgets what the context holds, as a process that serves other prompts in between would."""
    llm.reset()
    llm._ctx.kv_cache_clear()
    return True


def split_in_half(llm: Any, conversations: list[Any]) -> None:
    """A threshold that refuses about half of the prompts, so that agreeing on the outcome says something.

    It lies in the widest gap of the middle half: rounding is not to decide.
    """
    largest = sorted(max(llm.decide(c).scores.values()) for c in conversations)
    quarter = len(largest) // 4
    middle = largest[quarter : len(largest) - quarter]
    low, high = max(itertools.pairwise(middle), key=lambda pair: pair[1] - pair[0])
    llm.policy = llm.policy.replace(**dict.fromkeys(llm.policy.thresholds, (low + high) / 2))


def check_agreement(one: list[Any], many: list[Any], tolerance: float) -> None:
    for i, (a, b) in enumerate(zip(one, many)):
        close = all(abs(a.scores[slug] - b.scores[slug]) <= tolerance for slug in a.scores)
        if (a.outcome, a.category) != (b.outcome, b.category) or not close:
            raise SystemExit(f"prompt {i}: the contenders disagree: {a} and {b}")
    if len({a.outcome for a in one}) < 2:
        raise SystemExit("every prompt has the same outcome: agreement would mean nothing")


def make_conversations(rng: np.random.Generator, n: int) -> list[list[dict[str, str]]]:
    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(10, 50_000, size=count))

    system = {"role": "system", "content": words(SYSTEM_WORDS)}
    return [[system, {"role": "user", "content": words(PROMPT_WORDS)}] for _ in range(n)]


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def write_model(path: Path, seed: int = 3) -> Path:
    """A Llama of noise in float16 with its own output matrix, control tokens last."""
    from refusal_edge.keys import Stamp
    from refusal_edge.policy import Category

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
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


if __name__ == "__main__":
    raise SystemExit(main())
