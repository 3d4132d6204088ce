"""decide_batch against decide one by one: short prompts under one system prompt, a random model of 128k tokens.

    python bench/bench_batch.py [--prompts 64] [--rounds 3] [--threads N] [--gpu-layers N] [--json]

Three contenders: `decide` from an empty context (every prompt computed in full), `decide` as it is in a loop (it keeps
the system prompt that its context holds) and `decide_batch` (keeps it too, and puts many prompts into one
llama_decode). Before anything is timed they must agree on every prompt: same outcome, scores within 1e-3 (on a GPU,
where a batch of another shape is another matrix multiplication, partly in half precision, 1e-2). Not measured: loading,
and the answers. On a CPU a dozen tokens already keep the arithmetic busy, so most of the gain is the shared prefix; a
GPU gains more from the batch.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from random_model import make_conversations, run

from refusal_edge import Llama


def measure(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds in which the contenders take turns."""
    settings = {"n_threads": args.threads, "n_threads_batch": args.threads, "n_gpu_layers": args.gpu_layers}
    llm = Llama(path, n_ctx=1024, verbose=False, **settings)
    rng = np.random.default_rng(1)
    conversations = make_conversations(rng, args.prompts)
    split_in_half(llm, conversations)
    one, many = [llm.decide(c) for c in conversations], llm.decide_batch(conversations)
    tolerance = 1e-2 if args.gpu_layers else 1e-3
    check_agreement(one, many, tolerance)

    def one_by_one() -> list[Any]:
        llm._boundaries.clear()  # asking again would be answered from memory
        return [llm.decide(c) for c in conversations]

    def from_empty() -> list[Any]:
        llm._boundaries.clear()
        return [llm.decide(c) for c in conversations if emptied(llm)]

    check_agreement(from_empty(), many, tolerance)
    contenders: dict[str, Callable[[], object]] = {
        "from empty": from_empty,
        "one by one": one_by_one,
        "decide_batch": lambda: llm.decide_batch(conversations),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, function in contenders.items():
            seconds[name].append(timed(function))
    rates = {name: args.prompts / statistics.median(values) for name, values in seconds.items()}
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


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(run(__doc__ or "", measure, prompts=64, rounds=3))
