from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import made_scores
import numpy as np
import pytest
from made_scores import POLICY

from refusal_edge import reference
from refusal_edge.calibrate import odds
from refusal_edge.calibrate.replay import replay
from refusal_edge.calibrate.scorefile import is_scores_file, read_scores
from refusal_edge.calibrate.texts import Texts
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
    assert odds.threshold_above(-np.inf) == 1e-6  # not 0, which a score of exactly 0 passes


def test_a_threshold_lies_midway_between_the_scores_on_either_side() -> None:
    """And above the cut in any case: it refuses no more than "log-odds > cut", whose promise it so inherits."""
    rng = np.random.default_rng(5)
    pairs = np.sort(rng.normal(scale=rng.choice([1e-6, 0.1, 3, 12], size=(4000, 1)), size=(4000, 2)), axis=1)
    for cut, above in [*pairs + rng.normal(scale=6, size=(4000, 1)), (10.0, 20.0), (-20.0, -7.0), (0.3, np.inf)]:
        threshold, (low, high) = odds.threshold_between(cut, above), odds.expit([cut, above])
        if threshold == "off":
            assert low > 1 - 1.1e-6
            continue
        assert threshold > low
        assert round(float(np.float32(threshold)), 6) == threshold
        if high - low > 2.1e-6:
            assert threshold == pytest.approx((low + high) / 2, abs=1.1e-6)
            assert threshold < high
    assert odds.threshold_between(-np.inf, np.inf) == 0.5
    assert odds.threshold_between(np.inf, np.inf) == "off"


def test_the_scores_on_either_side_of_a_cut() -> None:
    scores = np.array([3.0, -np.inf, 1.0, 1.0, np.inf])
    sides = [(odds.last_up_to(cut, scores), odds.next_above(cut, scores)) for cut in (-np.inf, 0.0, 1.0, 3.5, np.inf)]
    assert sides == [(-np.inf, 1.0), (-np.inf, 1.0), (1.0, 3.0), (3.0, np.inf), (np.inf, np.inf)]


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
        (lambda lines: [lines[0].replace('"judge": null', '"judge": 3'), *lines[1:]], "expected the header"),
        (lambda lines: [lines[0].replace('"judge": null', '"judge": "x"'), *lines[1:]], "line 2: .* two judged texts"),
        (lambda lines: lines[:-1], "39 of 40 rows are scored: finish it"),
        (lambda lines: [*lines[:-1], lines[-1][:-9]], "line 41: expected a scored row, got broken JSON"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"label": "re', '"label": "xx')], "line 41: expected 4 logits"),
        (
            lambda lines: [*lines[:-1], lines[-1].replace('"logits": [', '"logits": [NaN, ')],
            "line 41: expected 4 logits",
        ),
        (
            lambda lines: [*lines[:-1], json.dumps({**json.loads(lines[-1]), "logits": [0.0, math.nan, 0.0, 0.0]})],
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


def test_rows_without_a_label_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    path = made_scores.write_scores(tmp_path / "s.jsonl", *made_scores.make_logits(40, 3))
    lines = path.read_text().splitlines()
    lines[1:11] = [json.dumps({**json.loads(line), "label": None}) for line in lines[1:11]]
    path.write_text("\n".join(lines) + "\n")
    table, everything = read_scores(path), read_scores(path, unlabelled=True)
    assert (len(table), table.n_unlabelled, table.labelled.all()) == (30, 10, True)
    assert (len(everything), everything.n_unlabelled) == (40, 0)
    assert everything.labelled.tolist() == [False] * 10 + [True] * 30
    assert not everything.refuse[:10].any()
    assert list(table.ids) == list(everything.select(everything.labelled).ids)
    lines[11:] = [json.dumps({**json.loads(line), "label": None}) for line in lines[11:]]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidRequestError, match="at least one row to use, got 0 bad ones and 40 without a label"):
        read_scores(path)


def test_reading_takes_few_bytes_a_row(tmp_path: Path) -> None:
    """Lists of Python objects take 700."""
    path = made_scores.write_scores(tmp_path / "s.jsonl", *made_scores.make_logits(100, 3))
    header, *rows = path.read_text().splitlines()
    n = 20_000
    lines = [f'{{"line": {i + 1}, ' + rows[i % 100].split(", ", 1)[1] for i in range(n)]
    path.write_text("\n".join([header.replace('"dataset_rows": 100', f'"dataset_rows": {n}'), *lines]))
    tracemalloc.start()
    table = read_scores(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == n
    assert peak < 200 * n
    assert (table.ids[0], table.ids[-1], table.sha256[101]) == ("r0", "r99", f"{1:064x}")


def test_rows_are_in_order_and_of_numbers(tmp_path: Path) -> None:
    path = made_scores.write_scores(tmp_path / "s.jsonl", *made_scores.make_logits(3, 3))
    header, *rows = path.read_text().splitlines()
    strings = json.loads(rows[1])
    strings["logits"] = [str(x) for x in strings["logits"]]
    for second, reason in (
        (rows[0], "line 3: expected a data line after 1, got 1"),
        (json.dumps(strings), "line 3: exp"),
    ):
        path.write_text("\n".join([header, rows[0], second, rows[2]]))
        with pytest.raises(InvalidRequestError, match=reason):
            read_scores(path)
    path.write_text("\n".join(json.dumps(json.loads(text), separators=(",", ":")) for text in (header, *rows)))
    assert is_scores_file(path)
    assert len(read_scores(path)) == 3


def test_texts_are_a_sequence_of_strings() -> None:
    words = ["", "a", "\u00e9\U0001f600", ""]
    texts = Texts(words)
    assert (list(texts), len(texts), texts[-2], "a" in texts) == (words, 4, words[2], True)
    assert texts == words == texts
    assert texts == Texts(words)
    assert texts != Texts(words[:-1])
    assert texts != [*words, ""]
    for index in (4, -5):
        with pytest.raises(IndexError):
            texts[index]
