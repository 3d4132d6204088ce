"""Tokens a second from the second token of an answer on: refusal_edge.Llama against llama_cpp.Llama on the same file.

    python bench/bench_end_to_end.py [--tokens 96] [--rounds 5] [--threads N] [--gpu-layers N] [--json]

The model is `random_model`'s, sampling is the default. What is timed is `generate` after its first token, so the
decision and the prompt are not in it. Before anything is timed both must give the same tokens for the same seed. The
contenders take turns; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import data
import llama_cpp
from random_model import run

from refusal_edge import Llama

PROMPT = [1, *range(400, 440)]


def measure(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {"n_ctx": 512, "n_threads": args.threads, "verbose": False, "seed": 1}
    settings["n_gpu_layers"] = args.gpu_layers
    ours, stock = Llama(path, **settings), llama_cpp.Llama(str(path), **settings)
    ours.policy = ours.policy.replace(min_control_mass=1.0)  # nothing is forced: the first token is sampled as well
    for llm in (ours, stock):
        llm.set_seed(11)
    if (a := answer(ours, args.tokens)[0]) != (b := answer(stock, args.tokens)[0]):
        raise SystemExit(f"the contenders do not agree: {a[:8]} ... {b[:8]} ...")
    pairs = [(answer(ours, args.tokens)[1], answer(stock, args.tokens)[1]) for _ in range(args.rounds)]
    return {
        "tokens/s with us": round(statistics.median(o for o, _ in pairs), 1),
        "tokens/s without": round(statistics.median(s for _, s in pairs), 1),
        "ratio": round(statistics.median(o / s for o, s in pairs), 4),
        "threads": args.threads,
        "layers on a GPU": args.gpu_layers,
        **data.environment(),
    }


def answer(llm: llama_cpp.Llama, n_tokens: int) -> tuple[list[int], float]:
    """The tokens, and how many a second came after the first."""
    llm.reset()
    stream = llm.generate(PROMPT)
    tokens = [next(stream)]
    start = time.perf_counter()
    tokens += [next(stream) for _ in range(n_tokens - 1)]
    rate = (n_tokens - 1) / (time.perf_counter() - start)
    stream.close()
    return tokens, rate


if __name__ == "__main__":
    raise SystemExit(run(__doc__ or "", measure, tokens=96, rounds=5))
