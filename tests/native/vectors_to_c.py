"""Turns tests/vectors/decide.json into the C table that test_vectors.c includes; run by CMake.

python vectors_to_c.py decide.json OUTPUT.h
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RULES = ("threshold", "sum", "paper-single", "paper-argmax", "paper-category")
SCORES = ("control", "vocab")
FALLBACKS = ("model", "respond", "refuse")
OUTCOMES = ("refuse", "respond", "no_decision")
SPECIAL = {"model": "REDGE_THRESHOLD_MODEL", "off": "REDGE_THRESHOLD_OFF"}


def main(source: Path, output: Path) -> None:
    cases = json.loads(source.read_text(encoding="utf-8"))["cases"]
    lines = [f"static const float logits_{i}[] = {{{_floats(c['logits'])}}};" for i, c in enumerate(cases)]
    rows = "\n".join(_row(i, c) for i, c in enumerate(cases))
    lines.append(f"static const vector vectors[] = {{\n{rows}\n}};\n")
    output.write_text("\n".join(lines), encoding="utf-8")


def _floats(logits: list[float | str]) -> str:
    return ",".join("-INFINITY" if z == "-inf" else f"{float(z)!r}f" for z in logits)


def _row(i: int, case: dict[str, Any]) -> str:
    policy, expected = case["policy"], case["expected"]
    categories = policy["categories"]
    slugs = [c["id"] for c in categories]
    fields = {
        "n_vocab": len(case["logits"]),
        "logits": f"logits_{i}",
        "policy": _policy(policy),
        "outcome": OUTCOMES.index(expected["outcome"]),
        "category": -1 if expected["category"] is None else slugs.index(expected["category"]),
        "token_id": -1 if expected["token_id"] is None else expected["token_id"],
        "model_token_id": expected["model_token_id"],
        "respond_score": repr(expected["respond_score"]),
        "control_mass": repr(expected["control_mass"]),
        "log_normalizer": repr(expected["log_normalizer"]),
        "scores": "{" + ",".join(repr(expected["scores"][slug]) for slug in slugs) + "}",
    }
    return "{" + ",".join(f".{name}={value}" for name, value in fields.items()) + "},"


def _policy(policy: dict[str, Any]) -> str:
    categories = policy["categories"]
    thresholds = [SPECIAL.get(c["threshold"], c["threshold"]) for c in categories]
    fields = {
        "rule": RULES.index(policy["rule"]),
        "score": SCORES.index(policy["score"]),
        "fallback": FALLBACKS.index(policy["fallback"]),
        "temperature": policy["temperature"],
        "min_control_mass": policy["min_control_mass"],
        "sum_threshold": policy["sum_threshold"],
        "respond_token_id": policy["respond_token_id"],
        "n_categories": len(categories),
        "token_ids": "{" + ",".join(str(c["token_id"]) for c in categories) + "}",
        "thresholds": "{" + ",".join(map(str, thresholds)) + "}",
    }
    return "{" + ",".join(f".{name}={value}" for name, value in fields.items()) + "}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
