"""Writes decide.json: golden vectors of the rule, read by the C tests and the Python tests alike.

    python tests/vectors/generate.py

Everything expected comes from refusal_edge.reference (NumPy float64). The logits are float32 of three
decimals; "-inf" stands for minus infinity. Sizes sit on the edges of SIMD lanes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refusal_edge import reference
from refusal_edge.policy import FALLBACKS, RULES, SCORES, Category, ControlValue, Policy

SEED = 20240612
SIZES = (7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129)
PER_RULE_AND_SCORE = 26
OUTPUT = Path(__file__).parent / "decide.json"


def main() -> None:
    rng = np.random.default_rng(SEED)
    cases = [
        case(rng, SIZES[i % len(SIZES)], rule, score)
        for rule in RULES
        for score in SCORES
        for i in range(PER_RULE_AND_SCORE)
    ]
    header = {"source": "refusal_edge.reference, float64", "seed": SEED}
    OUTPUT.write_text(json.dumps({**header, "cases": cases}, separators=(",", ":")) + "\n", encoding="utf-8")


def case(rng: np.random.Generator, n_vocab: int, rule: str, score: str) -> dict[str, Any]:
    policy = random_policy(rng, n_vocab, rule, score)
    logits = random_logits(rng, n_vocab, policy)
    expected = reference.decide(logits, policy)
    return {
        "policy": policy.to_dict(),
        "logits": ["-inf" if math.isinf(z) else float(str(z)) for z in logits],
        "expected": {**expected.to_dict(), "log_normalizer": expected.log_normalizer},
    }


def random_policy(rng: np.random.Generator, n_vocab: int, rule: str, score: str) -> Policy:
    """A policy with every kind of control value, 0 and 1 among the thresholds."""
    n_categories = 1 if rule in ("paper-single", "paper-argmax") else int(rng.integers(1, 6))
    ids = [int(i) for i in rng.permutation(n_vocab)[: n_categories + 1]]
    values: list[ControlValue] = [random_value(rng) for _ in range(n_categories)]
    if rule == "paper-single" and values[0] == "model":
        values[0] = 0.5
    return Policy(
        [Category(f"c{i}", token_id=ids[i], threshold=values[i]) for i in range(n_categories)],
        respond_token_id=ids[-1],
        rule=rule,  # type: ignore[arg-type]
        score=score,  # type: ignore[arg-type]
        temperature=float(rng.choice([1.0, 0.5, 2.0, 0.7])),
        min_control_mass=float(rng.choice([0.0, 0.5, 0.9])),
        fallback=str(rng.choice(FALLBACKS)),  # type: ignore[arg-type]
        sum_threshold=float(rng.choice([0.0, 0.3, 0.5, 1.0])),
    )


def random_value(rng: np.random.Generator) -> ControlValue:
    choices: list[ControlValue] = [0.0, 1.0, "off", "model", round(float(rng.random()), 3)]
    return choices[int(rng.integers(len(choices)))]


def random_logits(rng: np.random.Generator, n_vocab: int, policy: Policy) -> npt.NDArray[np.float32]:
    """Noise, a boost for the control tokens, and now and then ties or minus infinities."""
    control = list(policy.control_token_ids)
    logits = rng.normal(0.0, float(rng.choice([0.5, 2.0, 8.0])), n_vocab).round(3).astype(np.float32)
    logits[control] += np.float32(rng.choice([0.0, 4.0, 10.0]))
    if rng.random() < 0.25:
        logits[control] = np.float32(rng.integers(-2, 3))
    if rng.random() < 0.25:
        logits[rng.permutation(n_vocab)[: n_vocab // 3]] = -np.inf
    if not np.isfinite(logits[control]).any():
        logits[control[0]] = 1.0
    return logits.round(3)


if __name__ == "__main__":
    main()
