"""Seeded logits and the policy that the native benchmarks share."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from refusal_edge import Llama, _native, demo
from refusal_edge.convert import convert
from refusal_edge.policy import Category, Policy
from refusal_edge.sampling import last_logits

SEED = 5
OURS = "refusal-edge"
VOCABULARIES = (32_000, 128_256, 262_144)
N_ROWS = 8
"""Rows that a benchmark goes through in turn: a model writes its logits anew for every token, none is hot in cache."""

Logits = npt.NDArray[np.float32]


def flat(n_vocab: int) -> Logits:
    """Noise of standard deviation 1: thousands of tokens are likely."""
    return np.random.default_rng(SEED).normal(0, 1, (N_ROWS, n_vocab)).astype(np.float32)


def peaked(n_vocab: int) -> Logits:
    """Noise of standard deviation 3, and a few tokens far above it, respond first: what a model is sure of."""
    rows = np.random.default_rng(SEED).normal(0, 3, (N_ROWS, n_vocab)).astype(np.float32)
    rows[:, 100:110] += np.linspace(8, 14, 10, dtype=np.float32)
    rows[:, -1] = 24.0
    return rows


@cache
def recorded() -> Logits:
    """What the embedded demo model computes at the boundary of its own prompts, with its own small vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.gguf"
        convert(demo.checkpoint(), path, outtype="f32")
        llm = Llama(path, n_ctx=512, verbose=False)
        rows = []
        for prompt in [*demo.PROMPTS, "Hello!"][:N_ROWS]:
            llm._boundaries.clear()
            llm.decide([{"role": "user", "content": prompt}])
            rows.append(last_logits(llm._ctx, llm.n_vocab()).copy())
        llm.close()
    return np.stack(rows)


def resampled(n_vocab: int) -> Logits:
    """Recorded rows stretched to a larger vocabulary: other tokens' logits drawn with replacement, control tokens last.

    No trained model with a large vocabulary is at hand; what such logits look like is kept, spread and tail. A little
    noise makes them different from each other again.
    """
    rows, n_control = recorded(), 6
    rng = np.random.default_rng(SEED)
    others = rows[:, rng.integers(rows.shape[1] - n_control, size=n_vocab - n_control)]
    others = others + rng.normal(0, 0.05, others.shape).astype(np.float32)
    return np.concatenate([others, rows[:, -n_control:]], axis=1)


KINDS = {"flat": flat, "peaked": peaked, "resampled": resampled, "recorded": lambda n_vocab: recorded()}
N_RECORDED = int(json.loads((demo.checkpoint() / "config.json").read_text())["vocab_size"])
CASES = [(kind, n) for n in VOCABULARIES for kind in ("flat", "peaked", "resampled")] + [("recorded", N_RECORDED)]


def policy(n_vocab: int) -> Policy:
    """Five categories and respond at the end of the vocabulary, as the released models have them."""
    categories = [Category(f"c{i}", token_id=n_vocab - 6 + i, threshold=0.3) for i in range(5)]
    return Policy(categories, respond_token_id=n_vocab - 1)


def logits_processor(policy: Policy) -> Callable[[Logits], Logits]:
    """The rule as a llama-cpp-python logits_processor: scores in, all but the decided token's set to -inf."""
    control = np.array(policy.control_token_ids)
    thresholds = np.array([c.threshold for c in policy.categories], dtype=np.float64)

    def process(scores: Logits) -> Logits:
        top = scores.max()
        weights = np.exp(scores - top)
        p = weights[control] / weights.sum()
        q = p / p.sum()
        passing = q[:-1] >= thresholds
        if p.sum() < policy.min_control_mass:
            return scores
        token = control[int(np.where(passing, q[:-1], -1).argmax())] if passing.any() else control[-1]
        out = np.full_like(scores, -np.inf)
        out[token] = scores[token]
        return out

    return process


def describe(benchmark: Any, what: str, contender: str, logits: str, n_vocab: int, **isa: str) -> None:
    """What `refusal-edge bench` makes its table from."""
    benchmark.group = f"{what}, {n_vocab} tokens"
    benchmark.extra_info.update(environment(), **isa)
    benchmark.extra_info.update(what=what, contender=contender, logits=logits, n_vocab=n_vocab)


def environment() -> dict[str, str]:
    """What a row of results must carry to mean anything."""
    return {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "llama_cpp_python": llama_cpp.__version__,
        "isa_best": _native.isa_active(),
    }
