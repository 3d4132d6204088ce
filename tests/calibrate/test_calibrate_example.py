"""The command that writes the worked example of docs/calibration.md; its numbers are the model's own affair."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "calibration_example.py"

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="not a source checkout")


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibration_example", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_written_between_its_markers(
    tool: ModuleType, data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "TYPES", ("f32", "q8_0"))
    for split in ("calibration", "test"):
        shutil.copy(data_path, tmp_path / f"coconot_{split}.jsonl")
    document = tmp_path / "page.md"
    document.write_text(f"before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n")
    assert tool.main(["--data", str(tmp_path), "--document", str(document)]) == 0
    text = document.read_text()
    assert text.startswith(f"before\n{tool.BEGIN}\nThe demo model (f32")
    assert text.endswith(f"|\n{tool.END}\nafter\n")
    assert "old" not in text.replace("threshold", "")
    assert "| humanizing | 0 | no rows | no rows | cannot certify: 0 rows, needs 59 |" in text
    assert "| all | 72 |" in text
    assert "at most 5% refused at all |" in text
    assert "\n| q8_0 |" in text


@pytest.mark.parametrize("text", ["no markers", "{END}{BEGIN}", "{BEGIN}{BEGIN}{END}"])
def test_a_document_without_its_markers_stays_as_it_is(tool: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        tool.between_markers(text.format(BEGIN=tool.BEGIN, END=tool.END), "new")


def test_the_document_has_its_markers(tool: ModuleType) -> None:
    text = tool.DOCUMENT.read_text(encoding="utf-8")
    assert tool.between_markers(text, "new") != text
