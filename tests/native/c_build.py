"""Builds the C tests with CMake, against the llama.cpp that llama-cpp-python ships where its headers are there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(llama_cpp.__file__).parent


def llama_include() -> Path | None:
    """The folder with the installed llama.h, if llama-cpp-python shipped it."""
    folders = (PACKAGE / "include", PACKAGE.parent / "include")
    return next((folder for folder in folders if (folder / "llama.h").is_file()), None)


def tool(name: str) -> str:
    """Path of a program next to this Python, else on the PATH; skips the test without it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: run `pip install {name}`")
    return found


def build(folder: Path, *options: str, target: str = "all", llama: bool = True) -> None:
    """Configures and builds the C tests in `folder`, warnings as errors."""
    command = [tool("cmake"), "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"]
    command += ["-DREFUSAL_EDGE_PYTHON=OFF", "-DREFUSAL_EDGE_BUILD_TESTS=ON", "-DREFUSAL_EDGE_WERROR=ON", *options]
    if llama and (include := llama_include()):
        command += [f"-DREFUSAL_EDGE_LLAMA_INCLUDE={include}", f"-DREFUSAL_EDGE_LLAMA_LIB={PACKAGE / 'lib'}"]
    run(command)
    run([tool("cmake"), "--build", str(folder), "--parallel", "2", "--target", target])


def run_ctest(folder: Path, only: str = ".", verbose: bool = False) -> str:
    """Runs the tests whose names match `only`; returns what they print."""
    command = [tool("ctest"), "--test-dir", str(folder), "--output-on-failure", "-R", only, "--no-tests=error"]
    return run([*command, "-V"] if verbose else command)


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-8000:]}\n{result.stderr[-8000:]}"
    return result.stdout
