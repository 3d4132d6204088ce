from __future__ import annotations

import json
from pathlib import Path

import made_scores
import numpy as np
import pytest
from made_scores import POLICY

from refusal_edge import reference
from refusal_edge.calibrate import odds
from refusal_edge.calibrate.replay import replay
from refusal_edge.calibrate.scorefile import is_scores_file, read_scores
from refusal_edge.errors import InvalidRequestError


def test_scores_survive_the_file_bit_for_bit(tmp_path: Path) -> None:
    logits, refuse, category = made_scores.make_logits(50, 3)
    path = made_scores.write_scores(tmp_path / "s.jsonl", logits, refuse, category)
    table = read_scores(path)
    assert is_scores_file(path)
    assert table.logits.dtype == np.float32
    assert (table.logits == logits[:, list(POLICY.control_token_ids)]).all()
    assert (table.refuse == refuse).all()
    assert (table.category == category).all()
    row = json.loads(path.read_text().splitlines()[1])
    expected = reference.decide(logits[0], POLICY)
    assert row["probabilities"] == pytest.approx([*expected.scores.values(), expected.respond_score], rel=1e-6)
    assert row["log_odds"] == pytest.approx(
        np.log(row["probabilities"][:3]) - np.log1p(-np.array(row["probabilities"][:3])), rel=1e-4
    )
    assert odds.log_odds(table, POLICY)[0] == pytest.approx(row["log_odds"], rel=1e-5)


@pytest.mark.parametrize(
    "policy",
    [
        POLICY,
        POLICY.replace(safety=0.2, humanizing="off", unsupported=0.7),
        POLICY.replace(safety=0.2, humanizing=0.1, min_control_mass=0.97, fallback="refuse"),
        POLICY.replace(rule="sum", sum_threshold=0.4, unsupported="off"),
        POLICY.replace(score="vocab", safety=0.3),
        POLICY.replace(rule="paper-category", safety=0.3),
    ],
)
def test_a_replay_decides_as_the_reference_does_on_the_whole_logits(tmp_path: Path, policy: object) -> None:
    logits, refuse, category = made_scores.make_logits(300, 5, ties=True)
    table = read_scores(made_scores.write_scores(tmp_path / "s.jsonl", logits, refuse, category))
    replayed = replay(table, policy)
    expected = made_scores.decisions(logits, policy)
    assert replayed.refused.tolist() == [d.outcome == "refuse" for d in expected]
    assert replayed.no_decision.tolist() == [d.outcome == "no_decision" for d in expected]
    slugs = list(policy.thresholds)
    assert [None if c < 0 else slugs[c] for c in replayed.category] == [d.category for d in expected]


def test_log_odds_of_a_sum_and_of_the_whole_vocabulary(tmp_path: Path) -> None:
    table = made_scores.make_table(tmp_path)
    for policy in (POLICY, POLICY.replace(score="vocab")):
        q = 1 / (1 + np.exp(-odds.log_odds(table, policy)))
        together = odds.log_odds_of(table, policy, [0, 2])
        assert 1 / (1 + np.exp(-together)) == pytest.approx(q[:, 0] + q[:, 2], abs=1e-12)


def test_a_threshold_lies_strictly_above_the_cut() -> None:
    for cut in np.linspace(-20, 20, 4001):
        threshold = odds.threshold_above(float(cut))
        q = 1 / (1 + np.exp(-cut))
        if threshold == "off":
            assert q > 1 - 1e-12
        else:
            assert q < threshold <= q + 1.1e-6
            assert round(float(np.float32(threshold)), 6) == threshold
    assert odds.threshold_above(np.inf) == "off"
    assert odds.threshold_above(50.0) == "off"
    assert odds.threshold_above(-np.inf) == 0.0


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda lines: [], "expected the header of a scores file"),
        (lambda lines: ["{}", *lines[1:]], "expected the header of a scores file"),
        (
            lambda lines: [lines[0].replace('"version": 1', '"version": 2'), *lines[1:]],
            "version 2, this release reads 1",
        ),
        (
            lambda lines: [lines[0].replace('"shard": [1, 1]', '"shard": [2, 3]'), *lines[1:]],
            "shard 2 of 3: merge them",
        ),
        (lambda lines: lines[:-1], "39 of 40 rows are scored: finish it"),
        (lambda lines: [*lines[:-1], lines[-1][:-9]], "line 41: expected a scored row, got broken JSON"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"label": "re', '"label": "xx')], "line 41: expected 4 logits"),
        (
            lambda lines: [*lines[:-1], lines[-1].replace('"logits": [', '"logits": [NaN, ')],
            "line 41: expected 4 logits",
        ),
        (
            lambda lines: [*lines[:-1], lines[-1].replace('"category": "', '"category": "x')],
            "line 41: expected 4 logits",
        ),
        (
            lambda lines: [lines[0].replace('"respond_token_id": 9', '"respond_token_id": 5'), *lines[1:]],
            "line 1: token id 5",
        ),
    ],
)
def test_a_broken_scores_file_names_file_line_and_reason(tmp_path: Path, edit: object, reason: str) -> None:
    path = made_scores.write_scores(tmp_path / "s.jsonl", *made_scores.make_logits(40, 3))
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        read_scores(path)
    assert str(path) in str(caught.value)
