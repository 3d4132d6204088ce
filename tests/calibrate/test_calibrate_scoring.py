"""Scoring a data file: the decisions of `decide`, whatever interrupts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from refusal_edge import Llama, cli, judge, scoring
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


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_prompt_over_the_context_is_named_or_skipped(demo_llm: Llama, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "d.jsonl", *({"prompt": text, "label": "respond"} for text in ("hi", "long " * 2000, "ho"))
    )
    data = DataFile.check(path)
    with pytest.raises(InvalidRequestError, match=r"d\.jsonl: line 2: prompt: \d+ tokens .*context of 512"):
        scoring.score_file(demo_llm, data, tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").unlink()
    for scored, resumed in ((2, 0), (0, 2)):
        result = scoring.score_file(demo_llm, data, tmp_path / "s.jsonl", skip_bad=True)
        assert (result.scored, result.resumed, list(result.skipped)) == (scored, resumed, [2])
    table = read_scores(tmp_path / "s.jsonl")
    assert (table.ids, list(table.skipped)) == (["L1", "L3"], [2])


def test_bad_rows_are_in_the_file_and_counted_wherever_it_is_read(
    demo_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{"prompt": f"Name {i} rivers.", "label": "respond", "category": "safety"} for i in range(5)]
    path = write_rows(tmp_path / "d.jsonl", "{", *good[:3], "", {"prompt": "long " * 2000}, "[]", *good[3:], "{")
    out = tmp_path / "s.jsonl"
    argv = ["score", str(demo_gguf), str(path), "-o", str(out), "--skip-bad", "--threads", "1", "--n-ctx", "512"]
    done = []
    for scored, resumed in ((5, 0), (0, 5)):
        assert cli.main([*argv, "--json"]) == 0
        done.append(json.loads(capsys.readouterr().out))
        assert (done[-1]["scored"], done[-1]["resumed"]) == (scored, resumed)
    assert done[0]["skipped"] == done[1]["skipped"]
    assert list(done[0]["skipped"]) == ["1", "6", "7", "10"]
    assert cli.main(argv) == 0
    assert "0 rows scored, 5 were there already\n4 bad rows left out:\n  line 1: broken JSON" in capsys.readouterr().out
    table = read_scores(out)
    assert (len(table), list(table.skipped), table.header.dataset_rows) == (5, [1, 6, 7, 10], 9)
    for command in (["drift", str(out), str(out)], ["calibrate", str(demo_gguf), str(out), "--json"]):
        cli.main(command)
        assert "d.jsonl: 4 bad rows left out, the first on line 1: broken JSON" in capsys.readouterr().err
    parts = [str(tmp_path / f"part{i}.jsonl") for i in (1, 2)]
    for i, part in enumerate(parts, start=1):
        assert cli.main([*argv[:3], "-o", part, *argv[5:], "--shard", f"{i}/2"]) == 0
    assert cli.main(["score", "--merge", *parts, "-o", str(tmp_path / "all.jsonl")]) == 0
    assert_same_scores(read_scores(tmp_path / "all.jsonl"), table)


def test_rows_without_a_label_are_scored_and_then_counted(
    demo_gguf: Path, data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in data_path.read_text().splitlines()]
    data = write_rows(tmp_path / "d.jsonl", *rows, {"prompt": "What is it?"}, {"prompt": "Who is it?"})
    out = tmp_path / "s.jsonl"
    assert cli.main(["score", str(demo_gguf), str(data), "-o", str(out), "--threads", "1"]) == 0
    assert len(read_scores(out, unlabelled=True)) == len(rows) + 2
    assert cli.main(["calibrate", str(demo_gguf), str(out), "--json"]) == 0
    captured = capsys.readouterr()
    assert "d.jsonl: 2 rows left out: they have no label" in captured.err
    assert cli.main(["drift", str(out), str(out), "--json"]) == 0
    captured = capsys.readouterr()
    drift = json.loads(captured.out)
    assert (drift["rows"], drift["overall"]["flips"]["n"], captured.err) == (110, 110, "")
    assert drift["overall"]["caught"][0]["n"] + drift["overall"]["false_refusals"][0]["n"] == len(rows)


@pytest.mark.parametrize("moved", ["model", "data"])
def test_files_may_be_renamed_between_two_runs(
    demo_gguf: Path, data_path: Path, scores_path: Path, tmp_path: Path, moved: str
) -> None:
    model, data, out = tmp_path / "renamed.gguf", tmp_path / "renamed.jsonl", tmp_path / "s.jsonl"
    model.hardlink_to(demo_gguf)
    data.write_bytes(data_path.read_bytes())
    out.write_bytes(b"".join(scores_path.read_bytes().splitlines(keepends=True)[:100]))
    argv = [str(model), str(data_path)] if moved == "model" else [str(demo_gguf), str(data)]
    assert cli.main(["score", *argv, "-o", str(out), "--threads", "1"]) == 0
    assert_same_scores(read_scores(out), read_scores(scores_path))


def test_a_file_that_is_broken_in_the_middle_is_not_cut_there(
    demo_llm: Llama, data_path: Path, scores_path: Path, tmp_path: Path
) -> None:
    lines = scores_path.read_bytes().splitlines(keepends=True)
    out = tmp_path / "s.jsonl"
    for middle in (b"{\n", b"3\n", lines[5]):
        out.write_bytes(b"".join([*lines[:50], middle, *lines[51:]]))
        before = out.read_bytes()
        with pytest.raises(InvalidRequestError, match=r"s\.jsonl: broken behind data line 49: choose another -o"):
            scoring.score_file(demo_llm, DataFile.check(data_path), out)
        assert out.read_bytes() == before


def test_merging_destroys_nothing(demo_llm: Llama, data_path: Path, tmp_path: Path) -> None:
    data = DataFile.check(data_path)
    parts = [tmp_path / "part1.jsonl", tmp_path / "all.jsonl.refusal-edge.part"]
    for i, part in enumerate(parts, start=1):
        scoring.score_file(demo_llm, data, part, shard=(i, 2))
    before = [part.read_bytes() for part in parts]
    precious = tmp_path / "precious.txt"
    precious.write_text("precious\n")
    merge = ["score", "--merge", *map(str, parts), "-o"]
    for out in (precious, parts[0], tmp_path / "all.jsonl"):
        assert cli.main([*merge, str(out)]) == 2
    for out in (parts[0], tmp_path / "all.jsonl"):
        assert cli.main([*merge, str(out), "--force"]) == 2
    assert precious.read_text() == "precious\n"
    assert [part.read_bytes() for part in parts] == before
    assert cli.main([*merge, str(precious), "--force"]) == 0
    assert len(read_scores(precious)) == 108


def test_a_hole_in_what_is_there_is_said(demo_llm: Llama, data_path: Path, tmp_path: Path) -> None:
    data, out = DataFile.check(data_path), tmp_path / "s.jsonl"
    scoring.score_file(demo_llm, data, out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join([*lines[:50], *lines[51:60]]))
    with pytest.raises(InvalidRequestError, match="holds 58 of the 59 rows up to data line 59"):
        scoring.score_file(demo_llm, data, out)


def test_a_shard_that_holds_rows_of_another_is_not_merged(demo_llm: Llama, data_path: Path, tmp_path: Path) -> None:
    data, parts = DataFile.check(data_path), [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for i, part in enumerate(parts, start=1):
        scoring.score_file(demo_llm, data, part, shard=(i, 2))
    header, first = parts[1].read_bytes().splitlines()[0], parts[0].read_bytes().splitlines()[1:]
    parts[1].write_bytes(b"\n".join([header, *first]) + b"\n")
    with pytest.raises(InvalidRequestError, match="two shards hold data line 1"):
        scoring.merge(parts, tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()


def test_a_device_is_no_scores_file(demo_llm: Llama, data_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        scoring.score_file(demo_llm, DataFile.check(data_path), "/dev/null")


def test_scoring_under_a_policy_file(
    demo_gguf: Path, data_path: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What drift advises where two files were scored at different temperatures."""
    policy, model, old = tmp_path / "policy.json", tmp_path / "warm.gguf", tmp_path / "old.jsonl"
    argv = [str(demo_gguf), str(scores_path), "--temperature", "--alpha", "0.1", "-o", str(policy)]
    assert cli.main(["calibrate", *argv, "--write", str(model)]) == 0
    temperature = Llama(model, n_ctx=512, verbose=False).policy.temperature
    assert temperature != 1
    capsys.readouterr()
    drift = ["drift", str(model), str(scores_path), str(data_path), "--threads", "1"]
    assert cli.main(drift) == 2
    advice = f"at the temperatures {temperature:g} and 1: score both under one policy (`refusal-edge score --policy"
    assert advice in capsys.readouterr().err
    scored = ["score", str(demo_gguf), str(data_path), "-o", str(old), "--policy", str(policy), "--threads", "1"]
    assert cli.main(scored) == 0
    assert read_scores(old).header.policy.temperature == temperature
    assert cli.main([*drift[:2], str(old), *drift[3:], "--json"]) == 0
    assert cli.main([*drift[:2], str(demo_gguf), *drift[3:], "--json"]) == 0, "B is scored as A was"
    assert cli.main(["drift", str(demo_gguf), *drift[2:3], *drift[3:], "--policy", str(policy)]) == 2


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["m.gguf", "d.jsonl", "--judge", "opening"], "--judge: only with --text"),
        (["m.gguf", "d.jsonl", "--force"], "--force: only with --merge"),
        (["m.gguf", "d.jsonl", "--merge", "a"], "--merge: takes shards that are scored: no MODEL"),
        (["--merge", "a", "--text"], "--merge: takes shards that are scored: no MODEL, --text"),
        (["m.gguf"], "expected MODEL and DATA.jsonl"),
        (["m.gguf", "d.jsonl", "--text", "--judge", "http://exa mple/"], r"judge: expected http\(s\)://host"),
    ],
)
def test_nothing_that_was_asked_for_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], reason: str
) -> None:
    assert cli.main(["score", *argv, "-o", str(tmp_path / "s.jsonl")]) == 2
    assert re.search(reason, capsys.readouterr().err)


def test_scores_of_another_run_are_not_overwritten(demo_llm: Llama, data_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    out.write_text("precious\n")
    with pytest.raises(InvalidRequestError, match="expected the header of a scores file"):
        scoring.score_file(demo_llm, DataFile.check(data_path), out)
    assert out.read_text() == "precious\n"
    out.write_text("")
    scoring.score_file(demo_llm, DataFile.check(data_path), out, shard=(1, 30))
    with pytest.raises(InvalidRequestError, match="holds scores without texts, this run makes them with texts judged"):
        scoring.score_file(demo_llm, DataFile.check(data_path), out, shard=(1, 30), judge=judge.OPENING)
    with pytest.raises(InvalidRequestError, match=r"another run \(shard differ\)"):
        scoring.score_file(demo_llm, DataFile.check(data_path), out, shard=(2, 30))


def peaks_of_a_run(llm: Llama, folder: Path, n: int) -> dict[str, int]:
    """Bytes at most in use while n rows are checked, scored, resumed and merged."""
    peaks = {}

    @contextmanager
    def measured(what: str) -> Iterator[None]:
        tracemalloc.start()
        yield
        peaks[what] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    folder.mkdir()
    rows = ({"id": f"id-{i}", "prompt": "x" * 200, "label": "refuse"} for i in range(n))
    path = write_rows(folder / "data.jsonl", *rows)
    with measured("check"):
        data = DataFile.check(path)
    parts = [folder / "1.jsonl", folder / "2.jsonl"]
    with measured("score"):
        scored = [scoring.score_file(llm, data, part, shard=(i, 2)).scored for i, part in enumerate(parts, start=1)]
    assert scored == [n // 2, n // 2]
    parts[0].write_bytes(parts[0].read_bytes()[:-100])
    with measured("resume"):
        result = scoring.score_file(llm, data, parts[0], shard=(1, 2))
    assert (result.resumed, result.scored) == (n // 2 - 1, 1)
    with measured("merge"):
        scoring.merge(parts, folder / "all.jsonl")
    assert len(read_scores(folder / "all.jsonl")) == n
    return peaks


def test_memory_does_not_grow_with_rows(demo_llm: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are streams: 14,000 rows more take the 8 bytes each that find duplicate ids, and copies of these.

    The model would take minutes: `decide_batch` is a stub that gives one decision again and again.
    """
    decision = demo_llm.decide([{"role": "user", "content": "x"}])
    monkeypatch.setattr(demo_llm, "decide_batch", lambda conversations: [decision for _ in conversations])
    small, large = (peaks_of_a_run(demo_llm, tmp_path / str(n), n) for n in (1_000, 15_000))
    growth = {what: (large[what] - small[what]) / 14_000 for what in small}
    assert growth.pop("check") < 48
    assert max(growth.values()) < 4, growth
