"""The C tests under each sanitizer, on the machine's own processor and on 64-bit Arm under QEMU."""

from __future__ import annotations

import shutil
from pathlib import Path

import c_build
import pytest


def test_under_address_and_undefined_behaviour_sanitizer(tmp_path: Path) -> None:
    c_build.build(tmp_path, "-DREFUSAL_EDGE_SANITIZE=address,undefined")
    assert "100% tests passed" in c_build.run_ctest(tmp_path)


def test_under_thread_sanitizer(tmp_path: Path) -> None:
    if c_build.llama_include() is None:
        pytest.skip("the installed llama-cpp-python ships no llama.h")
    c_build.build(tmp_path, "-DREFUSAL_EDGE_SANITIZE=thread", target="test_threads")
    assert "100% tests passed" in c_build.run_ctest(tmp_path, "test_threads")


def test_nothing_is_allocated_on_the_hot_path(tmp_path: Path) -> None:
    if c_build.llama_include() is None:
        pytest.skip("the installed llama-cpp-python ships no llama.h")
    c_build.build(tmp_path, target="test_alloc")
    assert "100% tests passed" in c_build.run_ctest(tmp_path, "test_alloc")


def test_on_arm64_under_qemu(tmp_path: Path) -> None:
    for program in ("aarch64-linux-gnu-gcc", "qemu-aarch64"):
        if shutil.which(program) is None:
            pytest.skip(
                f"{program} is not installed: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
            )
    c_build.build(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={c_build.ROOT / 'tools' / 'aarch64.cmake'}", llama=False)
    output = c_build.run_ctest(tmp_path, "test_", verbose=True)
    assert "100% tests passed" in output
    assert "neon: checked" in output
    assert "neon: 260 vectors" in output
