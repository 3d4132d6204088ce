"""The executable's manners: help with examples, one clear line and exit code 2 on bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_edge import cli, demo
from refusal_edge.convert.gguf_rewrite import rewritten_header
from refusal_edge.gguf_file import read_gguf


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


RUN = [sys.executable, "-c", "import sys; from refusal_edge.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_traceback(closed: str, demo_gguf: Path, tmp_path: Path) -> None:
    script = f'"$@" {closed}'
    for arguments in (["decide", demo_gguf, "Hi"], ["inspect", demo_gguf], ["chat", demo_gguf]):
        done = subprocess.run(["sh", "-c", script, "sh", *RUN, *map(str, arguments)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "out.gguf"
    convert = [*RUN, "convert", str(demo.checkpoint()), "-o", str(out)]
    assert subprocess.run(["sh", "-c", script, "sh", *convert], check=False).returncode == 0
    with read_gguf(out) as file:
        assert file.n_vocab()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"\xffello", "standard input: expected utf-8 text, got the byte 0xff"), (b"", "expected text, got none")],
)
def test_standard_input_that_is_no_text(text: bytes, expected: str, demo_gguf: Path) -> None:
    utf8 = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*RUN, "decide", demo_gguf, "-"], input=text, env=utf8, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (cli.EXIT_BAD_INPUT, b"")
    assert expected in only_line(done.stderr.decode())
    if text:
        done = subprocess.run([*RUN, "chat", demo_gguf], input=text, env=utf8, capture_output=True, check=False)
        assert done.returncode == cli.EXIT_BAD_INPUT
        assert expected in only_line(done.stderr.decode())


def only_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert text.startswith("refusal-edge: error: ")
    return text


def test_a_failure_of_llama_cpp_is_one_line(
    demo_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("llama_decode returned -3")

    monkeypatch.setattr("refusal_edge.Llama.decide", fail)
    assert cli.main(["decide", str(demo_gguf), "Hi"]) == cli.EXIT_BAD_INPUT
    assert "llama.cpp cannot go on: llama_decode returned -3" in only_line(capsys.readouterr().err)


def test_errors_name_flags_not_arguments_of_python(demo_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, flag in (
        (["decide", str(demo_gguf), "Hi " * 1000, "--n-ctx", "64"], "larger --n-ctx"),
        (["decide", str(demo_gguf), "Hi", "--n-ctx", "2147483647"], "smaller --n-ctx"),
    ):
        assert cli.main(argv) == cli.EXIT_BAD_INPUT
        error = only_line(capsys.readouterr().err)
        assert flag in error
        assert " n_ctx" not in error


def test_errors_about_keys_name_the_file(demo_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plain.gguf"
    with read_gguf(demo_gguf) as file:
        header = rewritten_header(file, {key: None for key in file.kv if key.startswith("refusal_edge.")})
        path.write_bytes(header + demo_gguf.read_bytes()[file.data_offset :])
    assert cli.main(["decide", str(path), "Hi"]) == cli.EXIT_BAD_INPUT
    assert only_line(capsys.readouterr().err).startswith(f"refusal-edge: error: {path}: the file has no refusal_edge.")


def test_a_file_error_without_a_name_is_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.fail(OSError(28, "No space left on device")) == cli.EXIT_BAD_INPUT
    assert capsys.readouterr().err == "refusal-edge: error: No space left on device\n"


WRITING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or under nohup
import refusal_edge.convert.conversion as conversion
def write_tensors(*args, **kwargs):
    print("ready", flush=True)
    time.sleep(60)
conversion.write_tensors = write_tensors
from refusal_edge.cli import main
sys.exit(main(sys.argv[1:]))
"""
TESTING = WRITING.replace("conversion.write_tensors =", "conversion.prove =")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("script", [WRITING, TESTING], ids=["writing", "self-test"])
def test_a_signal_leaves_nothing_behind(script: str, number: signal.Signals, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-c", script, "convert", str(demo.checkpoint()), "-o", str(tmp_path / "out.gguf")]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.wait(30) == 128 + number
        assert child.stderr.read() == "interrupted\n"
    assert list(tmp_path.iterdir()) == [temporary]
    assert list(temporary.iterdir()) == []


def test_ctrl_c_while_commands_are_loaded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_parser", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """`nohup refusal-edge score ...` goes on when the terminal is closed."""
    script = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from refusal_edge import cli; from refusal_edge.cli import doctor\n"
        "doctor.run = lambda args: os.kill(os.getpid(), signal.SIGHUP) or 7\n"
        "raise SystemExit(cli.main(['doctor']))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7


def test_an_ascii_terminal_gets_escapes_not_a_traceback(demo_gguf: Path) -> None:
    command = [sys.executable, "-m", "refusal_edge.cli", "decide", str(demo_gguf), "Hi"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "control mass" in done.stdout
