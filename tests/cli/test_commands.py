"""Commands on the demo model: for people and for machines."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_edge import cli, demo


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(argv) == 0
    return capsys.readouterr().out


def test_demo_shows_every_prompt_under_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    answers = json.loads(run(capsys, "demo", "--json"))
    assert list(answers) == list(demo.PROMPTS)
    for group in answers.values():
        assert [a["policy"] for a in group] == ["as trained", "strict", "safety off"]
        assert len({round(a["respond_score"], 3) for a in group}) == 1, "scores do not depend on thresholds"
        assert all(a["text"] for a in group)
        assert all(a["category"] != "safety" for a in group if a["policy"] == "safety off")
    outcomes = {tuple(a["outcome"] for a in group) for group in answers.values()}
    assert len(outcomes) >= 3, "the three policies must be seen to differ"


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_demo_screen(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = run(capsys, "demo")
    assert all(prompt in screen for prompt in demo.PROMPTS)
    assert max(map(len, screen.splitlines())) < columns


def test_demo_keeps_an_existing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.gguf").write_text("precious")
    assert cli.main(["demo", "--keep", str(tmp_path / "mine.gguf")]) == cli.EXIT_BAD_INPUT
    assert (tmp_path / "mine.gguf").read_text() == "precious"


def test_decide_with_thresholds(demo_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["decide", str(demo_gguf), "Tell me a joke.", "--json"]
    plain = json.loads(run(capsys, *argv))
    forced = json.loads(run(capsys, *argv, "-t", "safety=0"))
    assert plain["outcome"] == "respond"
    assert (forced["outcome"], forced["category"]) == ("refuse", "safety")
    assert forced["scores"] == pytest.approx(plain["scores"])
    assert forced["policy_id"] != plain["policy_id"]


def test_decide_reads_standard_input(
    demo_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Tell me a joke."))
    assert "respond" in run(capsys, "decide", str(demo_gguf), "-")


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("safty=0.5", "safety"),
        ("safety=2", "[0, 1]"),
        ("safety", "SLUG=VALUE"),
        ("temperature=0.5", "unknown category"),
        ("categories=0.3", "unknown category"),
    ],
)
def test_bad_thresholds_are_one_line(
    demo_gguf: Path, flag: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["decide", str(demo_gguf), "Hi", "-t", flag]) == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


def test_chat_streams_and_takes_commands(
    demo_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["Do you ever feel lonely at night?", "/set humanizing=off", "/policy", "/set nothing=1", "/reset", "Hi!"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert cli.main(["chat", str(demo_gguf), "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert "[refused: humanizing" in captured.out
    assert "'humanizing': 'off'" in captured.out
    assert "unknown category 'nothing'" in captured.err
    assert " [respond]" not in captured.out


def test_a_conversation_that_is_too_long_can_be_reset(
    demo_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["Hi! " * 200, "/reset", "Hi!"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert cli.main(["chat", str(demo_gguf), "--n-ctx", "64", "--max-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert "--n-ctx; /reset forgets the conversation" in captured.err
    assert captured.out.strip()


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(run(capsys, "doctor", "--json"))
    assert facts["sampler"] == "bound"
    assert facts["instruction set in use"] in facts["instruction sets"]
    assert "serial" in facts["instruction sets"]
    assert "ggml" in facts["llama.cpp build"]
    assert any(device.startswith("CPU") for device in facts["devices"])


def test_doctor_says_unknown_where_llama_cpp_does_not_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        """A library without any of these functions."""

        def __getitem__(self, name: str) -> None:
            raise AttributeError(name)

    monkeypatch.setattr("refusal_edge.host.bind", lambda: None)
    monkeypatch.setattr("llama_cpp.llama_cpp._lib", Old())
    facts = json.loads(run(capsys, "doctor", "--json"))
    assert facts["llama.cpp build"] == "unknown, ggml unknown (commit unknown)"
    assert facts["devices"] == ["unknown"]


@pytest.mark.parametrize("argv", [["doctor"], ["decide", "MODEL", "Hi"], ["demo"]])
def test_an_unknown_instruction_set_is_named(argv: list[str], demo_gguf: Path) -> None:
    code = "import sys; from refusal_edge.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [str(demo_gguf) if argument == "MODEL" else argument for argument in argv]
    environment = {**os.environ, "REFUSAL_EDGE_ISA": "foo"}
    done = subprocess.run([sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode in (1, cli.EXIT_BAD_INPUT)
    assert "REFUSAL_EDGE_ISA: expected one of serial" in done.stdout + done.stderr
    assert "got 'foo'" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--n-ctx", "-5", "expected a whole number in [0, 2147483647]"),
        ("--n-ctx", "10000000000000", "expected a whole number"),
        ("--threads", "x", "expected a number of threads in [1, 512], got 'x'"),
        ("--threads", "0", "[1, 512]"),
        ("--threads", "513", "[1, 512]"),
        ("--threads", "1000000000000", "[1, 512]"),
    ],
)
def test_numbers_out_of_range_are_refused(
    flag: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["decide", "model.gguf", "Hi", flag, value])
    assert stop.value.code == cli.EXIT_BAD_INPUT
    assert expected in capsys.readouterr().err


def test_doctor_fails_where_decisions_would(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refusal_edge._native.isa_active", lambda: "unusable")
    assert cli.main(["doctor"]) == 1
