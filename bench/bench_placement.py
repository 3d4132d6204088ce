"""A decision inside the backend's graph against one on the CPU, from the same model and prompts.

    python bench/bench_placement.py [--prompts 64] [--rounds 3] [--threads N] [--gpu-layers N] [--json]

What is timed is `decide` on a prompt that the context has not seen, its system prompt kept: evaluating a dozen tokens
and deciding, either in the graph or by the CPU from 128k logits that had to be copied to it. Before anything is timed
the two must agree on every prompt: same outcome, scores within 1e-3. Not measured: answers, which are sampled on the
CPU either way. This is what `placement="auto"` should be judged by on a new device.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import bench_batch
import data
import numpy as np
from random_model import make_conversations, run

from refusal_edge import Decision, Llama
from refusal_edge.placement import Placement


def measure(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds in which the two take turns."""
    conversations = make_conversations(np.random.default_rng(1), args.prompts)

    def load(placement: Placement) -> Llama:
        settings: dict[str, Any] = {"n_threads": args.threads, "n_gpu_layers": args.gpu_layers, "verbose": False}
        return Llama(path, n_ctx=1024, placement=placement, **settings)

    def decide(llm: Llama) -> list[Decision]:
        llm._boundaries.clear()  # asking again would be answered from memory
        return [llm.decide(conversation) for conversation in conversations]

    cpu, backend = load("cpu"), load("backend")
    bench_batch.split_in_half(cpu, conversations)
    backend.policy = cpu.policy
    bench_batch.check_agreement(decide(cpu), decide(backend), tolerance=1e-3)
    if backend.placement != "backend":
        raise SystemExit("the device cannot run the rule: there is nothing to compare")
    seconds: dict[str, list[float]] = {"cpu": [], "backend": []}
    for _ in range(args.rounds):
        for name, llm in (("cpu", cpu), ("backend", backend)):
            seconds[name].append(bench_batch.timed(lambda llm=llm: decide(llm)))
    milliseconds = {name: 1e3 * statistics.median(values) / args.prompts for name, values in seconds.items()}
    return {
        **{f"{name}, ms a decision": round(value, 3) for name, value in milliseconds.items()},
        "ratio, cpu / backend": round(milliseconds["cpu"] / milliseconds["backend"], 3),
        "threads": args.threads,
        "layers on a GPU": args.gpu_layers,
        **data.environment(),
    }


if __name__ == "__main__":
    raise SystemExit(run(__doc__ or "", measure, prompts=64, rounds=3))
