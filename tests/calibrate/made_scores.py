"""Scored rows made with the reference rule, so that files, replays and calibrations have an independent answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from refusal_edge import reference
from refusal_edge.calibrate.rows import Row
from refusal_edge.calibrate.scorefile import Header, ScoreTable, read_scores, scored_row
from refusal_edge.decision import Decision
from refusal_edge.policy import Category, Policy

SLUGS = ("safety", "humanizing", "unsupported")
N_VOCAB = 12
POLICY = Policy([Category(slug, 5 + i) for i, slug in enumerate(SLUGS)], respond_token_id=9)


def make_logits(n: int, seed: int, shift: float = 1.5, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, N_VOCAB) float32 logits, (n,) refuse, (n,) category; refusals score higher for their own category."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(n, N_VOCAB))
    refuse, category = rng.uniform(size=n) < 0.4, rng.integers(0, len(SLUGS), size=n)
    logits[np.arange(n), 5 + category] += np.where(refuse, shift + 2, -shift)
    logits[:, 9] += np.where(refuse, 0, shift + 2)
    logits[:, 5:10] += 3
    return (np.round(logits) if ties else logits).astype(np.float32), refuse, category


def decisions(logits: np.ndarray, policy: Policy = POLICY) -> list[Decision]:
    return [reference.decide(row, policy) for row in logits]


def header(n: int, policy: Policy = POLICY, **changes: object) -> Header:
    fields = {
        "model": "m.gguf",
        "weights_sha256": "0" * 64,
        "file_type": 1,
        "template_sha256": "1" * 64,
        "dataset": "d.jsonl",
        "dataset_sha256": "2" * 64,
        "dataset_rows": n,
        "policy": policy,
    }
    return Header(**{**fields, **changes})


def write_scores(path: Path, logits: np.ndarray, refuse: np.ndarray, category: np.ndarray, **changes: object) -> Path:
    n = len(logits)
    lines = [header(n, **changes).to_json()]
    for i, decision in enumerate(decisions(logits, changes.get("policy", POLICY))):
        slug = None if category[i] < 0 else SLUGS[category[i]]
        row = Row(i + 1, f"r{i}", [], "refuse" if refuse[i] else "respond", slug, f"{i:064x}")
        lines.append(json.dumps(scored_row(row, decision)))
    path.write_text("\n".join(lines) + "\n")
    return path


def make_table(folder: Path, n: int = 400, seed: int = 1, ties: bool = False, **changes: object) -> ScoreTable:
    return read_scores(write_scores(folder / f"scores{n}-{seed}.jsonl", *make_logits(n, seed, ties=ties), **changes))
