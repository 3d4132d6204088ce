"""The executable's manners: help with examples, one clear line and exit code 2 on bad input."""

from __future__ import annotations

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
