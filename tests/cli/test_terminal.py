from __future__ import annotations

from pathlib import Path

import pytest

from refusal_edge.cli import common, terminal
from refusal_edge.errors import InvalidPolicyError


def test_bar_has_its_width_and_grows_with_the_fraction() -> None:
    bars = [terminal.bar(q, 8) for q in (-1.0, 0.0, 0.26, 0.5, 1.0, 2.0)]
    assert {len(b) for b in bars} == {8}
    assert bars == sorted(bars, key=lambda b: len(b.rstrip()))
    assert bars[0].strip() == ""
    assert bars[-1] == "█" * 8


def test_table_aligns_wide_characters() -> None:
    lines = terminal.table([["日本", "x"], ["ab", "y"]], indent="").splitlines()
    assert lines == ["日本  x", "ab    y"]


def test_untrusted_text_cannot_drive_the_terminal() -> None:
    assert terminal.printable("a\x1b[31m\nb") == "a\\x1b[31m\\nb"


@pytest.mark.parametrize("item", ["safety", "=0.3", "safety=1.5", "safety=nan", "safety=often"])
def test_thresholds_out_of_range_are_refused(item: str) -> None:
    with pytest.raises(InvalidPolicyError, match="--threshold"):
        common.parse_thresholds([item])


def test_thresholds_are_read() -> None:
    read = common.parse_thresholds(["safety=0.3", "humanizing=off", "incomplete=model"])
    assert read == {"safety": 0.3, "humanizing": "off", "incomplete": "model"}


def test_errors_of_the_api_are_put_in_flags() -> None:
    assert terminal.in_flags("n_ctx: a larger n_ctx (verbose=True)") == "--n-ctx: a larger --n-ctx (--verbose)"
    assert terminal.in_flags("--n-ctx, an_n_ctx.gguf, n_ctx_train") == "--n-ctx, an_n_ctx.gguf, n_ctx_train"


def test_the_program_is_called_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "refusal-edge"
    here.write_text("#!/bin/sh\n")
    here.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(here)])
    monkeypatch.setenv("PATH", "")
    assert terminal.program() == str(here)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert terminal.program() == "refusal-edge"
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest"])
    assert terminal.program() == "refusal-edge"
