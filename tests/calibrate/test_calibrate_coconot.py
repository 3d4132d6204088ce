"""The demo model on the project's prompts: calibrated on one file, measured on another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refusal_edge import Llama
from refusal_edge.calibrate import DataFile, PolicyFile, ScoreTable, Target, calibrate, read_scores
from refusal_edge.report import collect
from refusal_edge.scoring import score_file

DATA = Path(os.environ.get("REFUSAL_EDGE_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not (DATA / "coconot_test.jsonl").exists(), reason="the CoCoNot rows are not part of the repository"
)


def scored(llm: Llama, folder: Path, name: str) -> ScoreTable:
    out = folder / f"{name}.jsonl"
    score_file(llm, DataFile.check(DATA / f"coconot_{name}.jsonl", list(llm.policy.thresholds)), out)
    return read_scores(out)


def test_realised_false_refusals_fit_the_promise(demo_llm: Llama, tmp_path: Path) -> None:
    rows, held_out = (scored(demo_llm, tmp_path, name) for name in ("calibration", "test"))
    result = calibrate(rows, rows.header.policy, Target())
    assert {(u.category, u.n) for u in result.uncertified} == {
        ("humanizing", 0),
        ("indeterminate", 0),
        ("incomplete", 32),
        ("safety", 23),
        ("unsupported", 16),
    }
    facts = collect(held_out, PolicyFile.of(result, rows.header, "2025-01-01"))
    ((promise, realised),) = facts.promises
    assert promise.at_all
    assert realised == facts.overall.false_refusals
    assert realised.n == 58
    assert realised.low <= promise.alpha == 0.05
    assert facts.rows_that_calibrated == 0
    uncertified = {c.name for c in facts.categories if not c.certifiable}
    assert uncertified >= {"humanizing", "indeterminate"}
    assert facts.overall.auroc > 0.8


def test_batched_scores_decide_as_one_by_one(demo_llm: Llama, tmp_path: Path) -> None:
    rows = list(DataFile.check(DATA / "coconot_test.jsonl"))
    one = [demo_llm.decide(row.messages) for row in rows]
    many = demo_llm.decide_batch([row.messages for row in rows])
    assert [(d.outcome, d.category) for d in one] == [(d.outcome, d.category) for d in many]
    assert max(abs(a.scores[s] - b.scores[s]) for a, b in zip(one, many) for s in a.scores) < 1e-3
