"""drift: what changed between two models, in numbers and in exit codes."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_scores
import numpy as np
import pytest
from made_scores import POLICY, SLUGS

from refusal_edge import cli
from refusal_edge import drift as drifting
from refusal_edge.calibrate import PolicyFile, read_scores
from refusal_edge.errors import InvalidRequestError
from refusal_edge.report import collect


def run(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> str:
    assert cli.main(["drift", *(str(a) for a in argv)]) == code
    return capsys.readouterr().out


def edited(path: Path, other: Path, edit: Callable[[int, dict[str, Any]], dict[str, Any] | None]) -> Path:
    """A scores file with each row changed, or left out where the change is None."""
    header, *rows = path.read_text().splitlines()
    changed = [edit(i, json.loads(row)) for i, row in enumerate(rows)]
    lines = [json.dumps(row) for row in changed if row is not None]
    other.write_text("\n".join([header, *lines]) + "\n")
    return other


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """300 rows, of 3 categories."""
    return made_scores.write_scores(tmp_path / "a.jsonl", *made_scores.make_logits(300, 7))


def test_drift_between_types_of_one_model(
    demo_gguf: Path, data_path: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from refusal_edge import demo
    from refusal_edge.convert import convert

    def moves(shift: dict[str, Any]) -> list[float]:
        return [abs(m["after"] - m["before"]) for m in shift["largest_moves"]]

    same = json.loads(run(capsys, scores_path, demo_gguf, data_path, "--json", "--threads", "1"))
    assert same["overall"]["flips"]["k"] == 0
    assert max(max(moves(c), default=0) for c in same["categories"]) < 0.02  # bf16
    convert(demo.checkpoint(), tmp_path / "small.gguf", outtype="q4_0")
    argv = (scores_path, tmp_path / "small.gguf", data_path, "--json", "--threads", "1")
    moved = json.loads(run(capsys, *argv))
    for category in moved["categories"]:
        found = moves(category)
        assert len(found) == drifting.LARGEST_MOVES
        assert found == sorted(found, reverse=True)
        assert found[0] >= category["median_move"]
    assert max(moves(category)[0] for category in moved["categories"]) > 0.05
    flips = moved["overall"]["flips"]["rate"]
    assert moved["overall"]["delta_auroc"] == pytest.approx(moved["overall"]["auroc"][1] - moved["overall"]["auroc"][0])
    assert json.loads(run(capsys, *argv, "--max-flips", flips))["passed"] is True


def test_drift_past_its_limit_exits_with_1(
    scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row of 108 with its logits reversed: one flip, named first among the moves."""
    rows = scores_path.read_text().splitlines()
    other = edited(
        scores_path, tmp_path / "b.jsonl", lambda i, row: {**row, "logits": row["logits"][:: -1 if i == 99 else 1]}
    )
    result = json.loads(run(capsys, scores_path, other, "--max-flips", 0.005, "--json", code=1))
    assert result["overall"]["flips"]["k"] == 1
    for category in result["categories"]:
        assert {move["id"] for move in category["largest_moves"]} <= {json.loads(rows[100])["id"]}
    assert "more than the 0.50% allowed" in run(capsys, scores_path, other, "--max-flips", 0.005, code=1)
    run(capsys, scores_path, other, "--max-flips", 0.01)


def test_every_failure_exits_with_2(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, made, made, "--max-flips", "2", code=2)
    run(capsys, made, made, "--max-flips", "nan", code=2)
    run(capsys, made, tmp_path / "missing.jsonl", code=2)
    assert cli.main(["drift", str(made), str(made), "/nonexistent.jsonl"]) == 2
    assert "A and B are scores files, got /nonexistent.jsonl as well" in capsys.readouterr().err
    for error in (KeyError("a bug"), MemoryError(), RecursionError()):

        def fail(*args: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(drifting, "compare", fail)
        assert cli.main(["drift", str(made), str(made), "--max-flips", "1"]) == 2
        assert type(error).__name__ in capsys.readouterr().err


def test_each_category_has_its_own_largest_moves(made: Path, tmp_path: Path) -> None:
    """A row that moves far in one category does not hide what moved in another."""

    def edit(i: int, row: dict[str, Any]) -> dict[str, Any]:
        logits = list(row["logits"])
        if i < 20:
            logits[0] += 30 + i
        elif i == 50:
            logits[2] += 3
        return {**row, "logits": logits}

    result = drifting.compare(read_scores(made), read_scores(edited(made, tmp_path / "b.jsonl", edit)), POLICY)
    first, _, third = result.categories
    assert [move.id for move in first.largest_moves] == ["r19", "r18", "r17"]
    assert "r50" not in {move.id for move in first.largest_moves}
    assert len(third.largest_moves) == drifting.LARGEST_MOVES


def test_infinite_log_odds_are_json(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A logit of -inf is a score of exactly 0; where all but one are, that one's is exactly 1."""

    def edit(i: int, row: dict[str, Any]) -> dict[str, Any]:
        logits = list(row["logits"])
        if i == 3:
            logits[0] = None
        elif i == 4:
            logits = [None, 5.0, None, None]
        return {**row, "logits": logits}

    other = edited(made, tmp_path / "b.jsonl", edit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a, b in ((made, other), (other, made), (other, other)):
            text = run(capsys, a, b, "--json")
            result = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
            run(capsys, a, b)
    assert all(category["largest_moves"] == [] for category in result["categories"]), "nothing moved at last"
    result = json.loads(run(capsys, made, other, "--json"))
    first = result["categories"][0]["largest_moves"]
    assert [(m["id"], m["after"], m["infinite"]) for m in first[:2]] == [("r3", None, True), ("r4", None, True)]
    assert math.isfinite(first[0]["before"])
    assert first[2:] == []
    assert result["categories"][0]["median_move"] == 0


def test_auroc_is_that_of_the_report(made: Path) -> None:
    """Of 1 - p(respond) for all rows, of a category's log-odds for its own; also at another temperature."""
    for policy in (POLICY, POLICY.replace(temperature=3.0)):
        table = read_scores(made)
        facts, result = collect(table, PolicyFile(policy)), drifting.compare(table, table, policy)
        assert result.overall.auroc == (facts.overall.auroc, facts.overall.auroc)
        assert [shift.auroc[0] for shift in result.categories] == [c.auroc for c in facts.categories]
        assert result.overall.false_refusals[0] == facts.overall.false_refusals
        assert [shift.caught[1] for shift in result.categories] == [c.caught for c in facts.categories]


def test_rows_are_matched_by_content(made: Path, tmp_path: Path) -> None:
    """A bad row of one is left out of both, whatever ids and lines say: an empty line moves the names of rows on."""

    def edit(i: int, row: dict[str, Any]) -> dict[str, Any]:
        if i == 10:
            return {"line": 12, "error": "too long"}
        return {**row, "id": f"r{i + 1}", "line": row["line"] + 1}

    a, b = read_scores(made), read_scores(edited(made, tmp_path / "b.jsonl", edit))
    result = drifting.compare(a, b, POLICY)
    assert result.n == 299
    assert result.overall.flips.k == 0
    assert all(shift.median_move == 0 and not shift.largest_moves for shift in result.categories)
    shuffled = edited(made, tmp_path / "c.jsonl", lambda i, row: {**row, "sha256": f"{(i + 1) % 300:064x}"})
    other = edited(made, tmp_path / "d.jsonl", lambda i, row: {**row, "sha256": f"{i + 1000:064x}"})
    for path in (shuffled, other):
        with pytest.raises(InvalidRequestError, match="hold no rows in common, or not in one order"):
            drifting.compare(a, read_scores(path), POLICY)


def test_rows_without_a_label_count_as_flips_and_in_no_rate(made: Path, tmp_path: Path) -> None:
    path = edited(made, tmp_path / "b.jsonl", lambda i, row: {**row, "label": row["label"] if i % 3 else None})
    table, some = read_scores(path, unlabelled=True), read_scores(path)
    moved = read_scores(
        edited(path, tmp_path / "c.jsonl", lambda i, row: {**row, "logits": row["logits"][::-1]}), unlabelled=True
    )
    result, labelled = drifting.compare(table, moved, POLICY), drifting.compare(some, some, POLICY)
    assert (result.n, labelled.n) == (300, 200)
    assert result.overall.flips.k > 100
    for shift, expected in zip((result.overall, *result.categories), (labelled.overall, *labelled.categories)):
        assert shift.false_refusals[0] == expected.false_refusals[0]
        assert shift.caught[0] == expected.caught[0]
        assert shift.auroc[0] == expected.auroc[0]
    nothing = read_scores(edited(made, tmp_path / "n.jsonl", lambda i, row: {**row, "label": None}), unlabelled=True)
    result = drifting.compare(nothing, nothing, POLICY)
    assert (result.n, result.overall.flips.n, result.overall.caught[0].n) == (300, 300, 0)
    assert np.isnan(result.overall.auroc[0])
    assert [shift.name for shift in result.categories] == list(SLUGS)
