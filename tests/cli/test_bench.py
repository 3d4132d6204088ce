"""`refusal-edge bench`: a real, short run, and what it says where it cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refusal_edge import _native, cli
from refusal_edge.cli import bench

BEST = _native.isa_names()[-1] if _native.isa_available(_native.isa_names()[-1]) else "serial"
needs_a_checkout = pytest.mark.skipif(not (bench.FOLDER / bench.FILES[0]).is_file(), reason="not a source checkout")


@needs_a_checkout
def test_a_short_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "FILES", ("bench_decide.py",))
    monkeypatch.setattr(bench, "QUICK", ("--benchmark-max-time=0.02", "--benchmark-min-rounds=3"))
    assert cli.main(["bench", "--quick", "--json", "--isa", BEST]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["not_measured"].startswith("Not measured")
    assert document["environment"].keys() == {"machine", "instruction sets", "versions", "measured"}
    rows = document["rows"]
    assert {row["logits"].split()[1] for row in rows} == {"flat", "peaked", "resampled", "recorded"}
    assert {row["isa"] for row in rows} <= {BEST}
    judged = [row for row in rows if row["met"] is not None]
    assert {row["contender"] for row in judged} == ({"np.max"} if BEST != "serial" else set())
    for row in judged:
        assert row["ratio"] == pytest.approx(row["ours_us"] / row["contender_us"], abs=0.02)
        assert row["met"] == (row["ratio"] <= 3)


def report(**medians: float) -> dict[str, Any]:
    """A pytest-benchmark report of one greedy chain."""

    def entry(contender: str, us: float, **isa: str) -> dict[str, Any]:
        info = {"what": "greedy chain", "contender": contender, "logits": "flat", "n_vocab": 128_256, **isa}
        return {"extra_info": info, "stats": {"median": us / 1e6}}

    ours = [entry(bench.OURS, us, isa=isa) for isa, us in medians.items() if isa != "stock"]
    return {"benchmarks": [entry("llama_sampler_sample", medians["stock"]), *ours]}


def test_each_instruction_set_against_each_contender() -> None:
    rows = list(bench.compare(report(stock=100, serial=50, avx2=5, avx512=10)))
    assert [(row.isa, row.contender, row.ratio, row.met) for row in rows] == [
        ("avx2", "llama_sampler_sample", 20, True),
        ("avx2", "plain C, -O3", 10, None),
        ("avx512", "llama_sampler_sample", 10, False),
        ("avx512", "plain C, -O3", 5, None),
    ]


def test_an_unknown_instruction_set(capsys: pytest.CaptureFixture[str]) -> None:
    if not (bench.FOLDER / bench.FILES[0]).is_file():
        pytest.skip("not a source checkout")
    assert cli.main(["bench", "--isa", "sse9"]) == cli.EXIT_BAD_INPUT
    assert "--isa: expected one of serial" in capsys.readouterr().err


def test_outside_a_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "bench")
    assert cli.main(["bench"]) == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not part of the installed package" in error


@needs_a_checkout
def test_contenders_that_disagree_are_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bench_decide.py").write_text("def test_they_agree():\n    assert 1 == 2\n")
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "FILES", ("bench_decide.py",))
    assert cli.main(["bench", "--quick"]) == cli.EXIT_BAD_INPUT
    assert "failed" in capsys.readouterr().err.splitlines()[-1]
