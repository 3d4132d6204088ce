"""Scoring a data file: the decisions of `decide`, whatever interrupts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from refusal_edge import Llama, cli, scoring
from refusal_edge.calibrate import DataFile, ScoreTable, read_scores
from refusal_edge.errors import InvalidRequestError

SCORE = "from refusal_edge.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def assert_same_scores(a: ScoreTable, b: ScoreTable) -> None:
    assert (a.ids, a.sha256, a.skipped) == (b.ids, b.sha256, b.skipped)
    assert np.abs(probabilities(a) - probabilities(b)).max() < 1e-3


def probabilities(table: ScoreTable) -> np.ndarray:
    """Of the control tokens: the logits of a bf16 model move by a few 1e-3 with the size of the batch."""
    e = np.exp(table.logits - table.logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_scores_are_those_of_decide(demo_llm: Llama, data_path: Path, scores_path: Path) -> None:
    table = read_scores(scores_path)
    rows = list(DataFile.check(data_path))
    assert table.ids == [row.id for row in rows]
    for i in range(0, len(rows), 9):
        decision = demo_llm.decide(rows[i].messages)
        expected = [*decision.scores.values(), decision.respond_score]
        assert probabilities(table)[i] == pytest.approx(expected, abs=1e-3)
        assert table.log_normalizer[i] == pytest.approx(decision.log_normalizer, abs=0.02)
    assert table.header.dataset_sha256 == DataFile.check(data_path).sha256
    assert len(table.header.weights_sha256) == 64


@pytest.mark.parametrize("torn", [b"", b'{"line": 71, "id"', b'{"line": 71, "id": "row-70"}'])
def test_what_is_there_is_not_scored_again(
    demo_llm: Llama, data_path: Path, scores_path: Path, tmp_path: Path, torn: bytes
) -> None:
    lines = scores_path.read_bytes().splitlines(keepends=True)
    out = tmp_path / "scores.jsonl"
    out.write_bytes(b"".join(lines[:71]) + torn)
    done: list[tuple[int, int]] = []
    result = scoring.score_file(demo_llm, DataFile.check(data_path), out, progress=lambda *x: done.append(x))
    assert (result.resumed, result.scored) == (70, 108 - 70)
    assert (done[0], done[-1]) == ((70, 108), (108, 108))
    assert out.read_bytes().splitlines(keepends=True)[:71] == lines[:71]
    assert_same_scores(read_scores(out), read_scores(scores_path))
    again = scoring.score_file(demo_llm, DataFile.check(data_path), out)
    assert (again.resumed, again.scored) == (108, 0)


def test_a_killed_run_goes_on(demo_gguf: Path, data_path: Path, scores_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    argv = ["score", str(demo_gguf), str(data_path), "-o", str(out), "--threads", "1", "--n-ctx", "512"]
    process = subprocess.Popen([sys.executable, "-c", SCORE, *argv], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") > 1):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert cli.main(argv) == 0
    assert_same_scores(read_scores(out), read_scores(scores_path))


def test_shards_merge_into_the_whole(demo_llm: Llama, data_path: Path, scores_path: Path, tmp_path: Path) -> None:
    data = DataFile.check(data_path)
    parts = [tmp_path / f"part{i}.jsonl" for i in (1, 2, 3)]
    for i, part in enumerate(parts, start=1):
        scoring.score_file(demo_llm, data, part, shard=(i, 3))
    with pytest.raises(InvalidRequestError, match="shard 1 of 3: merge them first"):
        read_scores(parts[0])
    with pytest.raises(InvalidRequestError, match="expected each of the shards 1/3 to 3/3 once, got 1/3, 1/3"):
        scoring.merge([parts[0], parts[0]], tmp_path / "all.jsonl")
    assert cli.main(["score", "--merge", *map(str, reversed(parts)), "-o", str(tmp_path / "all.jsonl")]) == 0
    assert_same_scores(read_scores(tmp_path / "all.jsonl"), read_scores(scores_path))
    parts[1].write_bytes(b"".join(parts[1].read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(InvalidRequestError, match="107 of 108 rows are scored"):
        scoring.merge(parts, tmp_path / "short.jsonl")
    assert not list(tmp_path.glob("short*"))


def test_a_prompt_over_the_context_is_named_or_skipped(demo_llm: Llama, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": text, "label": "respond"} for text in ("hi", "long " * 2000, "ho")]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = DataFile.check(path)
    with pytest.raises(InvalidRequestError, match=r"d\.jsonl: line 2: prompt: \d+ tokens .*context of 512"):
        scoring.score_file(demo_llm, data, tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").unlink()
    for _ in range(2):
        result = scoring.score_file(demo_llm, data, tmp_path / "s.jsonl", skip_bad=True)
        assert list(result.skipped) == [2]
    table = read_scores(tmp_path / "s.jsonl")
    assert (table.ids, list(table.skipped)) == (["L1", "L3"], [2])


def test_scores_of_another_run_are_not_overwritten(demo_llm: Llama, data_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    out.write_text("precious\n")
    with pytest.raises(InvalidRequestError, match="expected the header of a scores file"):
        scoring.score_file(demo_llm, DataFile.check(data_path), out)
    assert out.read_text() == "precious\n"
    out.write_text("")
    scoring.score_file(demo_llm, DataFile.check(data_path), out, shard=(1, 30))
    with pytest.raises(InvalidRequestError, match=r"another run \(shard differ\)"):
        scoring.score_file(demo_llm, DataFile.check(data_path), out, shard=(2, 30))


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    """Reading is a stream: the peak for 15,000 rows is that of 8 bytes a row and one row."""
    import tracemalloc

    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for i in range(15_000):
            file.write(json.dumps({"id": f"id-{i}", "prompt": "x" * 200, "label": "refuse"}) + "\n")
    tracemalloc.start()
    data = DataFile.check(path)
    n = sum(1 for _ in data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 15_000
    assert peak < 1 << 20
