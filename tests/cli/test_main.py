"""The executable's manners: help with examples, one clear line and exit code 2 on bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_edge import cli


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"refusal-edge {command}" in text


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["decide", "missing.gguf", "Hi"], "missing.gguf"),
        (["inspect", "missing.gguf"], "missing.gguf"),
        (["convert", "missing-folder", "-o", "out.gguf"], "missing-folder"),
        (["chat", "missing.gguf"], "missing.gguf"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == cli.EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("refusal-edge: error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err


def test_unknown_command_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["covert"])
    assert stop.value.code == cli.EXIT_BAD_INPUT
    assert "convert" in capsys.readouterr().err


def test_errors_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "\x1b]0;owned\x07.gguf"]) == cli.EXIT_BAD_INPUT
    assert "\x1b" not in capsys.readouterr().err


def test_an_ascii_terminal_gets_escapes_not_a_traceback(demo_gguf: Path) -> None:
    command = [sys.executable, "-m", "refusal_edge.cli", "decide", str(demo_gguf), "Hi"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "control mass" in done.stdout
