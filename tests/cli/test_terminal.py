from __future__ import annotations

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
