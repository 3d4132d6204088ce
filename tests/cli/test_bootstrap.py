"""tools/bootstrap.py, which `make demo` runs: it never deletes what is no environment of its own."""

from __future__ import annotations

import importlib.util
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bootstrap.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="not a source checkout")


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with everything that takes long left out."""
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "pip", lambda *_: 0)
    create = venv.create
    monkeypatch.setattr(module.venv, "create", lambda folder, *, with_pip, clear: create(folder, clear=clear))
    return module


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_environment_is_left_alone(
    kind: str, bootstrap: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = precious = tmp_path / "work"
    if kind == "folder":
        target.mkdir()
        precious = target / "thesis.txt"
    precious.write_text("precious")
    assert bootstrap.main(["bootstrap.py", str(target)]) == 2
    assert precious.read_text() == "precious"
    assert f"error: {target} exists and is no virtual environment" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "broken environment"])
def test_an_environment_is_made_where_nothing_is_lost(kind: str, bootstrap: Any, tmp_path: Path) -> None:
    target = tmp_path / "venv"
    if kind != "nothing":
        target.mkdir()
    if kind == "broken environment":
        (target / "pyvenv.cfg").write_text("home = /nowhere\n")
        (target / "stale").write_text("")
    assert bootstrap.main(["bootstrap.py", str(target)]) == 0
    assert (target / "bin" / "python").exists()
    assert not (target / "stale").exists()


def test_the_current_folder_is_not_searched_for_modules(
    bootstrap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp_of_this_folder.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert not bootstrap.is_installed(Path(sys.executable), "llama_cpp_of_this_folder")
