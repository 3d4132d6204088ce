"""calibrate, report and drift on the demo model, as a user runs them."""

from __future__ import annotations

import json
import struct
import warnings
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from refusal_edge import Llama, cli
from refusal_edge.calibrate import read_policy_file, read_scores
from refusal_edge.calibrate.replay import replay
from refusal_edge.errors import InvalidPolicyError

HI = [{"role": "user", "content": "hi"}]
SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "policy.schema.json").read_text())


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
        ["--scope", "pooled", "--method", "ltt", "--alpha", "0.1"],
        ["--method", "crc"],
        ["--method", "f1", "--scope", "pooled"],
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
    assert "at most 0.1 of benign prompts pass" in shown
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
    table = read_scores(scores_path)
    assert replay(table, llm.policy).refused[~table.refuse].mean() <= 0.1
    run(capsys, "calibrate", demo_gguf, data_path, "--write", out, code=2)
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
        (["--alpha", "0"], "alpha: expected a number in (0, 1)"),
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "expected a policy file"),
        ({"version": 2}, "version 2, this release reads 1"),
        ({"policy": {"categories": []}}, "expected the fields categories"),
        ({"calibration": {"method": 3}}, "calibration.method"),
        ({"calibration": {"unknown": 3}}, "calibration.unknown"),
        ({"calibration": {"method": "np"}}, "calibration.n is missing"),
        ({"calibration": {"alpha": 0.0}}, r"calibration.alpha: expected a number in \(0, 1\), got 0.0"),
        ({"certificates": 3}, "certificates: expected a list of objects"),
    ],
)
def test_a_broken_policy_file_is_named(policy_path: Path, change: dict[str, object], reason: str) -> None:
    policy_path.write_text(json.dumps({**json.loads(policy_path.read_text()), **change}))
    with pytest.raises(InvalidPolicyError, match=reason):
        read_policy_file(policy_path)


class Page(HTMLParser):
    """What a page would load, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_is_one_page_with_every_picture(
    scores_path: Path, policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "report"
    numbers = json.loads(run(capsys, "report", scores_path, "--policy", policy_path, "-o", folder, "--json"))
    table, policy = read_scores(scores_path), read_policy_file(policy_path).policy
    refused = replay(table, policy).refused
    assert numbers["overall"]["false_refusals"]["k"] == int(refused[~table.refuse].sum())
    assert numbers["overall"]["caught"]["k"] == int(refused[table.refuse].sum())
    assert numbers["always_refuse_f1"] == pytest.approx(2 * 36 / (108 + 36))
    assert numbers["calibrated_on_these_rows"] is True
    by_name = {c["category"]: c for c in numbers["categories"]}
    assert by_name["safety"]["certifiable"] is True
    assert by_name["humanizing"]["certifiable"] is False
    assert json.loads((folder / "report.json").read_text()) == numbers
    page = Page()
    page.feed((folder / "report.html").read_text())
    assert page.open == []
    assert len(page.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "cannot certify" in page.text
    assert "its rates here are optimistic" in page.text
    for picture in folder.glob("*.png"):
        data = picture.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert min(width, height) > 300


@pytest.mark.parametrize("options", [None, ["--method", "f1"], ["--method", "crc"], ["--bias", "--alpha", "0.1"]])
def test_every_kind_of_policy_can_be_drawn(
    demo_gguf: Path,
    scores_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str] | None,
) -> None:
    arguments: list[object] = []
    if options is not None:
        run(capsys, "calibrate", demo_gguf, scores_path, "-o", tmp_path / "p.json", *options)
        arguments = ["--policy", tmp_path / "p.json"]
    run(capsys, "report", scores_path, *arguments, "-o", tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert ("not calibrated" in text) is (options is None)
    assert ("target: at most" in text) is (options is not None and "f1" not in options)


def test_untrusted_names_are_escaped(scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = scores_path.read_text().splitlines()
    header = {**json.loads(lines[0]), "model": "<script>alert(1)</script>"}
    (tmp_path / "s.jsonl").write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    run(capsys, "report", tmp_path / "s.jsonl", "-o", tmp_path / "report")
    assert "<script>" not in (tmp_path / "report" / "report.html").read_text()


def test_drift_between_types_of_one_model(
    demo_gguf: Path, data_path: Path, scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from refusal_edge import demo
    from refusal_edge.convert import convert

    same = json.loads(run(capsys, "drift", scores_path, demo_gguf, data_path, "--json", "--threads", "1"))
    assert same["overall"]["flips"]["k"] == 0
    assert max(abs(m["after"] - m["before"]) for m in same["largest_moves"]) < 0.02  # bf16
    convert(demo.checkpoint(), tmp_path / "small.gguf", outtype="q4_0")
    argv = ("drift", scores_path, tmp_path / "small.gguf", data_path, "--json", "--threads", "1")
    moved = json.loads(run(capsys, *argv))
    moves = [abs(m["after"] - m["before"]) for m in moved["largest_moves"]]
    assert moves == sorted(moves, reverse=True)
    assert moves[0] > 0.05
    flips = moved["overall"]["flips"]["rate"]
    assert moved["overall"]["delta_auroc"] == pytest.approx(moved["overall"]["auroc"][1] - moved["overall"]["auroc"][0])
    assert json.loads(run(capsys, *argv, "--max-flips", flips))["passed"] is True


def test_drift_past_its_limit_exits_with_1(
    scores_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row of 108 with its logits reversed: one flip, named first among the moves."""
    lines = scores_path.read_text().splitlines()
    row = json.loads(lines[100])
    row["logits"] = row["logits"][::-1]
    lines[100] = json.dumps(row)
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines) + "\n")
    result = json.loads(run(capsys, "drift", scores_path, other, "--max-flips", 0.005, "--json", code=1))
    assert result["overall"]["flips"]["k"] == 1
    assert result["largest_moves"][0]["id"] == row["id"]
    assert "more than the 0.50% allowed" in run(capsys, "drift", scores_path, other, "--max-flips", 0.005, code=1)
    run(capsys, "drift", scores_path, other, "--max-flips", 0.01)
    assert cli.main(["drift", str(scores_path), str(other), "--max-flips", "2"]) == 2
