"""calibrate and report on the demo model, as a user runs them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from refusal_edge import Llama, cli
from refusal_edge.calibrate import read_policy_file, read_scores
from refusal_edge.calibrate.replay import replay
from refusal_edge.errors import InvalidPolicyError
from refusal_edge.gguf_file import read_gguf

HI = [{"role": "user", "content": "hi"}]
SCHEMA = json.loads(resources.files("refusal_edge.calibrate").joinpath("policy.schema.json").read_text())


def run(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> str:
    assert cli.main([str(a) for a in argv]) == code
    return capsys.readouterr().out


@pytest.fixture
def policy_path(demo_gguf: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    run(capsys, "calibrate", demo_gguf, scores_path, "-o", tmp_path / "policy.json")
    return tmp_path / "policy.json"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--scope", "category", "--method", "ltt", "--alpha", "0.1"],
        ["--scope", "union", "--alpha", "0.3", "--delta", "0.3"],
        ["--method", "crc", "--scope", "category"],
        ["--method", "f1"],
        ["--method", "youden", "--scope", "category"],
        ["--method", "rate", "--rate", "0.2", "--off", "incomplete"],
        ["--temperature", "--bias", "--alpha", "0.1"],
    ],
)
def test_a_policy_file_fits_the_schema_and_reads_back(
    demo_gguf: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    out = tmp_path / "policy.json"
    printed = json.loads(run(capsys, "calibrate", demo_gguf, scores_path, "-o", out, "--json", *options))
    written = json.loads(out.read_text())
    assert printed == written
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(written, SCHEMA)
    file = read_policy_file(out)
    assert file.policy.to_dict() == written["policy"]
    assert file.calibration == written["calibration"]
    table = read_scores(scores_path)
    assert file.calibration["dataset_sha256"] == table.header.dataset_sha256
    assert file.calibration["template_sha256"] == table.header.template_sha256
    assert file.calibration["file_type"] == table.header.file_type
    assert file.calibration["policy_id"] == file.policy.policy_id
    assert file.to_dict() == written
    out2 = tmp_path / "again.json"
    run(capsys, "calibrate", demo_gguf, scores_path, "-o", out2, *options)
    assert json.loads(out2.read_text()) == written


def test_a_calibrated_model_says_so_and_another_template_does_not(
    demo_gguf: Path, data_path: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "calibrated.gguf"
    policy_path = tmp_path / "policy.json"
    options = ("--write", out, "-o", policy_path, "--alpha", "0.1", "--threads", "1")
    shown = run(capsys, "calibrate", demo_gguf, data_path, *options)
    assert "np: at most 10% of benign prompts are refused at all, with confidence 95%, from 72 benign rows" in shown
    table = read_scores(scores_path)
    refused = replay(table, read_policy_file(policy_path).policy).refused
    assert f"rows to refuse caught       {refused[table.refuse].mean():.1%} [" in shown
    assert "(always refusing: 0.500)" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm = Llama(out, n_ctx=512, verbose=False, n_threads=1)
    assert llm.decide(HI).calibrated
    assert llm.decide_batch([HI])[0].calibrated
    assert not llm.decide(HI, policy={"safety": 0.9}).calibrated
    plain = Llama(demo_gguf, n_ctx=512, verbose=False, n_threads=1)
    assert not plain.decide(HI).calibrated
    plain.load_policy(policy_path)
    assert plain.decide(HI).calibrated
    assert plain.policy == llm.policy
    assert json.loads(run(capsys, "decide", demo_gguf, "hi", "--policy", policy_path, "--json"))["calibrated"]
    assert replay(table, llm.policy).refused[~table.refuse].mean() <= 0.1
    broken = bytearray(out.read_bytes())
    key = b"refusal_edge.calibration.template_sha256"
    place = broken.index(key) + len(key) + 4 + 8
    broken[place : place + 4] = b"0000"
    (tmp_path / "broken.gguf").write_bytes(broken)
    with pytest.warns(UserWarning, match="not calibrated for this file: template_sha256"):
        llm = Llama(tmp_path / "broken.gguf", n_ctx=512, verbose=False, n_threads=1)
    assert not llm.decide(HI).calibrated
    wrong = json.loads(policy_path.read_text())
    wrong["calibration"]["file_type"] = 0
    policy_path.write_text(json.dumps(wrong))
    with pytest.warns(UserWarning, match=r"not calibrated for this file: file_type is \d+, calibrated for 0"):
        plain.load_policy(policy_path)
    assert not plain.decide(HI).calibrated


def test_other_weights_or_thresholds_are_not_calibrated(
    demo_gguf: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy file, then a calibrated GGUF; the command line says so in a line of its own."""
    out, policy_path = tmp_path / "calibrated.gguf", tmp_path / "policy.json"
    run(capsys, "calibrate", demo_gguf, scores_path, "-o", policy_path, "--write", out)
    with read_gguf(demo_gguf) as file:
        offset = file.tensors["output_norm.weight"].offset
    other = bytearray(demo_gguf.read_bytes())
    other[offset] ^= 1
    (tmp_path / "other.gguf").write_bytes(other)
    argv = ("decide", tmp_path / "other.gguf", "hi", "--policy", policy_path, "--json")
    assert cli.main([str(a) for a in argv]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["calibrated"] is False
    assert shown.err.startswith(f"warning: {tmp_path / 'other.gguf'}: not calibrated for this file: weights_sample is ")
    assert shown.err.count("\n") == 1
    edited = json.loads(policy_path.read_text())
    for category in edited["policy"]["categories"]:
        category["threshold"] = 0.001
    policy_path.write_text(json.dumps(edited))
    changed = bytearray(out.read_bytes())
    key = b"refusal_edge.category.0.threshold"
    place = changed.index(key) + len(key) + 4
    changed[place : place + 4] = struct.pack("<f", 0.001)
    out.write_bytes(changed)
    plain = Llama(demo_gguf, n_ctx=512, verbose=False, n_threads=1)
    with pytest.warns(UserWarning, match="the policy was changed after it was calibrated"):
        plain.load_policy(policy_path)
    assert not plain.decide(HI).calibrated
    with pytest.warns(UserWarning, match="the policy was changed after it was calibrated"):
        llm = Llama(out, n_ctx=512, verbose=False, n_threads=1)
    assert not llm.decide(HI).calibrated


def test_a_report_on_a_calibrated_file_shows_its_promise(
    demo_gguf: Path, data_path: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "calibrated.gguf"
    run(capsys, "calibrate", demo_gguf, scores_path, "--write", out)
    run(capsys, "score", out, data_path, "-o", tmp_path / "s.jsonl", "--threads", "1")
    shown = run(capsys, "report", tmp_path / "s.jsonl", "-o", tmp_path / "r")
    assert "promised: at most 5% of benign prompts are refused at all" in shown
    page = (tmp_path / "r" / "report.html").read_text()
    assert "(promised: at most 5%)" in page
    assert "108 of these 108 rows are rows that the policy was calibrated on" in page


def test_scores_of_another_model_are_refused(
    demo_gguf: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = scores_path.read_text().splitlines()
    header = {**json.loads(lines[0]), "weights_sha256": "0" * 64}
    (tmp_path / "s.jsonl").write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    assert cli.main(["calibrate", str(demo_gguf), str(tmp_path / "s.jsonl"), "--json"]) == 2
    assert "scores of another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--alpha", "0.01"], "72 benign rows: needs at least 299"),
        (["--scope", "union"], "needs at least 459"),
        (["--alpha", "0"], "alpha: expected a number in [1e-06, 0.999999]"),
        (["--alpha", "1e-300"], "alpha: expected a number in [1e-06, 0.999999]"),
        (["--alpha", "1e-6"], "needs at least 2995731"),
        (["--temperature", "--fit-fraction", "0.999"], "fit_fraction 0.999: expected at least one of the benign rows"),
        (["--off", "min_control_mass"], "unknown category 'min_control_mass'"),
        (["--off", "spam"], "unknown category 'spam'"),
        (["--method", "magic"], "method: expected one of np, ltt"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(
    demo_gguf: Path, scores_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    assert cli.main(["calibrate", str(demo_gguf), str(scores_path), "--json", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert reason in captured.err
    assert captured.err.count("\n") == 1


def test_a_certificate_without_its_delta_is_named(policy_path: Path) -> None:
    data = json.loads(policy_path.read_text())
    data["certificates"][0]["delta"] = None
    policy_path.write_text(json.dumps(data))
    with pytest.raises(InvalidPolicyError, match=r"certificates\[0\].delta: expected with calibration.delta alone"):
        read_policy_file(policy_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "expected a policy file"),
        ({"version": 2}, "version 2, this release reads 1"),
        ({"policy": {"categories": []}}, "expected the fields categories"),
        ({"calibration": {"method": 3}}, "calibration.method"),
        ({"calibration": {"unknown": 3}}, "calibration.unknown"),
        ({"calibration": {"method": "np"}}, "calibration.scope is missing"),
        ({"warnings": 7}, "warnings: expected a list of texts, got 7"),
        (
            {"uncertified": [{"category": "safety", "n": 1, "needed": 2, "categories": 3}]},
            r"uncertified\[0\]: expected",
        ),
        ({"calibration": {"alpha": 0.0}}, r"calibration.alpha: expected a number in \[1e-06, 0.999999\], got 0.0"),
        ({"calibration": {"alpha": 1}}, r"calibration.alpha: expected a number in \[1e-06, 0.999999\], got 1"),
        ({"certificates": 3}, "certificates: expected a list of objects"),
        ({"certificates": [{"n": 3}]}, r"certificates\[0\]: expected the fields alpha, categories"),
        ({"uncertified": [{"category": "spam", "n": 1, "needed": 2}]}, r"uncertified\[0\]: unknown category 'spam'"),
    ],
)
def test_a_broken_policy_file_is_named(policy_path: Path, change: dict[str, object], reason: str) -> None:
    policy_path.write_text(json.dumps({**json.loads(policy_path.read_text()), **change}))
    with pytest.raises(InvalidPolicyError, match=reason):
        read_policy_file(policy_path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("alpha", 1e-300, "alpha: expected a number in"),
        ("categories", [], "categories: expected a list of categories"),
        ("rows", "spam", "unknown category 'spam'"),
        ("n", -1, "n: expected a whole number, got -1"),
        ("cut", "high", "cut: expected a number or null, got 'high'"),
        ("thresholds", {"safety": 2}, "thresholds.safety: expected a number in"),
    ],
)
def test_a_broken_certificate_is_named(policy_path: Path, field: str, value: object, reason: str) -> None:
    data = json.loads(policy_path.read_text())
    data["certificates"][0][field] = value
    policy_path.write_text(json.dumps(data))
    with pytest.raises(InvalidPolicyError, match=rf"policy.json: certificates\[0\]: {reason}"):
        read_policy_file(policy_path)


def test_a_negative_seed_is_one_line(scores_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["calibrate", "m.gguf", str(scores_path)], ["report", str(scores_path), "-o", "r"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, "--seed", "-1"])
        assert stop.value.code == 2
        assert "argument --seed: expected a whole number" in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(
    demo_gguf: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is scored before that is known."""

    def fails(*options: object, data: object = tmp_path / "no-such-data.jsonl") -> str:
        assert cli.main([str(a) for a in ("calibrate", model, data, *options)]) == 2
        return capsys.readouterr().err

    model, scores = tmp_path / "m.gguf", tmp_path / "scores.jsonl"
    model.write_bytes(demo_gguf.read_bytes())
    scores.write_bytes(scores_path.read_bytes())
    old = tmp_path / "old.json"
    old.write_text("precious")
    assert f"{old} exists; use --force" in fails("-o", old)
    assert "missing does not exist" in fails("-o", tmp_path / "missing" / "p.json")
    for options in (["-o", model], ["--write", model], ["-o", model, "--force"]):
        assert "is what calibrate reads" in fails(*options)
    assert "is what calibrate reads" in fails("-o", scores, "--force", data=scores)
    assert "expected two files" in fails("-o", tmp_path / "a", "--write", tmp_path / "." / "a")
    assert model.read_bytes() == demo_gguf.read_bytes()
    assert scores.read_bytes() == scores_path.read_bytes()
    assert old.read_text() == "precious"
    run(capsys, "calibrate", model, scores, "-o", old, "--force")
    assert read_policy_file(old).calibration is not None


def test_a_model_that_cannot_be_written_leaves_no_policy_file(
    demo_gguf: Path, scores_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", "out.gguf")

    monkeypatch.setattr("refusal_edge.convert.annotate.restamp", full)
    options = ["-o", str(tmp_path / "p.json"), "--write", str(tmp_path / "out.gguf")]
    assert cli.main(["calibrate", str(demo_gguf), str(scores_path), *options]) == 2
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_line_says_what_to_install(demo_gguf: Path, scores_path: Path, tmp_path: Path) -> None:
    """Before anything is scored; and `score` itself needs none of it."""
    code = (
        "import sys; sys.modules.update({'scipy': None, 'matplotlib': None});"
        "from refusal_edge.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    missing = tmp_path / "missing.jsonl"
    for command in (["calibrate", demo_gguf, missing, "--json"], ["report", missing, "-o", tmp_path / "r"]):
        done = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "refusal-edge: error: scipy is not installed: run `pip install 'refusal-edge[calibrate]'`\n"
        )
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hi", "label": "respond"}\n')
    command = ["score", str(demo_gguf), str(rows), "-o", str(tmp_path / "s.jsonl"), "--threads", "1"]
    assert subprocess.run([sys.executable, "-c", code, *command], capture_output=True).returncode == 0


def test_too_high_a_rate_of_refusals_is_said_loudly(
    demo_gguf: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every benign row of safety scores on humanizing, which has no benign rows of its own."""
    lines = scores_path.read_text().splitlines()
    slugs = list(read_scores(scores_path).header.policy.thresholds)
    rows = [json.loads(line) for line in lines[1:]]
    for i, row in enumerate(rows):
        row["category"] = "safety" if i % 2 else "humanizing"
        on = {"safety": "humanizing", "humanizing": "safety"}[row["category"]]
        row["label"], row["logits"] = "respond", [8.0 if slug == on else 0.0 for slug in slugs] + [6.0]
        row["log_normalizer"] = 8.2
    made = tmp_path / "near.jsonl"
    made.write_text("\n".join([lines[0], *map(json.dumps, rows)]) + "\n")
    options = ("--alpha", "0.1", "-o", tmp_path / "p.json")
    assert cli.main([str(a) for a in ("calibrate", demo_gguf, made, "--scope", "category", *options)]) == 0
    shown = capsys.readouterr()
    assert "nothing is promised about being refused at all" in shown.out
    assert shown.err.startswith("warning: 100.0% [96.6%, 100.0%] of these benign rows are refused at all, more than")
    assert cli.main([str(a) for a in ("report", made, "--policy", tmp_path / "p.json", "-o", tmp_path / "r")]) == 0
    shown = capsys.readouterr()
    assert "warning: 100.0% [96.6%, 100.0%] of benign rows are refused at all, more than alpha = 10%" in shown.err
    page = (tmp_path / "r" / "report.html").read_text()
    assert "promised: at most" not in page
    assert "Nothing was promised about being refused at all." in page
