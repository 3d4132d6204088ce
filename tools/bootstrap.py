#!/usr/bin/env python3
"""Creates the virtual environment and installs refusal-edge into it, editable. Standard library only.

llama-cpp-python has no wheel on the index: pip compiles llama.cpp the first time (about 6 minutes on 2 cores) and keeps
the wheel in its cache, so that it is never compiled twice. This script shows that compilation as a progress line.

    python3 tools/bootstrap.py .venv            # the package
    python3 tools/bootstrap.py .venv test,dev   # with extras
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_PYTHON = (3, 10)
STEP = re.compile(r"\[\s*(\d+)(?:/(\d+)|%)\]")  # ninja: [12/345], make: [ 12%]


def main(argv: list[str]) -> int:
    if not 2 <= len(argv) <= 3:
        print(__doc__, file=sys.stderr)
        return 2
    if sys.version_info < MINIMUM_PYTHON:
        return fail(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}; try PYTHON=python3.12 make")
    environment, extras = Path(argv[1]), f"[{argv[2]}]" if len(argv) == 3 else ""
    python = environment / "bin" / "python"
    if not python.exists():
        if not may_be_cleared(environment):
            return fail(
                f"{environment} exists and is no virtual environment (it has no pyvenv.cfg); choose another VENV"
            )
        say(f"Creating {environment}")
        try:
            venv.create(environment, with_pip=True, clear=environment.exists())
        except (subprocess.CalledProcessError, OSError) as error:
            return fail(f"python3 cannot create a virtual environment ({error}); on Debian: apt install python3-venv")
    if not is_installed(python, "llama_cpp"):
        say("Installing llama-cpp-python: compiles llama.cpp once, about 6 minutes on 2 cores, seconds when cached")
        requirement = next(line for line in dependencies() if line.startswith("llama-cpp-python"))
        if code := pip(python, "-v", requirement):
            return fail("llama-cpp-python could not be installed; it needs a C++ compiler (g++ or clang++)", code)
    say(f"Installing refusal-edge{extras}: compiles its C library, a few seconds")
    if code := pip(python, "-v", "-e", f"{ROOT}{extras}"):
        return fail("refusal-edge could not be installed; it needs a C compiler (gcc or clang)", code)
    return 0


def may_be_cleared(environment: Path) -> bool:
    """Whether nothing of value can be lost: nothing there, an empty folder, or what is left of an environment."""
    if not os.path.lexists(environment):
        return True
    return environment.is_dir() and ((environment / "pyvenv.cfg").is_file() or not any(environment.iterdir()))


def dependencies() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("dependencies"))
    return re.findall(r'"([^"]+)"', line)


def is_installed(python: Path, module: str) -> bool:
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(python), "-I", "-c", probe], check=False).returncode == 0


def pip(python: Path, *arguments: str) -> int:
    """Runs `pip install`; shows compile steps as one progress line, and the last lines of its log if it fails."""
    command = [str(python), "-I", "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=ROOT
    )
    assert process.stdout is not None
    log = list(show_progress(process.stdout))
    if code := process.wait():
        print("".join(log[-40:]), file=sys.stderr)
        return code
    return 0


def show_progress(lines: Iterable[str]) -> Iterator[str]:
    start, shown = time.monotonic(), -1.0
    interactive = sys.stderr.isatty()
    for line in lines:
        yield line
        step = STEP.search(line)
        if step is None:
            continue
        done = 100 * int(step[1]) // int(step[2]) if step[2] else int(step[1])
        seconds = time.monotonic() - start
        if interactive:
            bar = "#" * (done // 4)
            print(f"\r  compiling [{bar:<25}] {done:3d}%  {seconds:4.0f} s", end="", file=sys.stderr, flush=True)
        elif seconds - shown >= 30:
            print(f"  compiling {done:3d}%  {seconds:4.0f} s", file=sys.stderr, flush=True)
            shown = seconds
    if interactive:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def fail(text: str, code: int = 2) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    os.environ.setdefault("PIP_PROGRESS_BAR", "off")
    sys.exit(main(sys.argv))
