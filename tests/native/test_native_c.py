"""The C tests under each sanitizer, on the machine's own processor and on 64-bit Arm under QEMU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import c_build
import pytest


def test_under_address_and_undefined_behaviour_sanitizer(tmp_path: Path) -> None:
    c_build.build(tmp_path, "-DREFUSAL_EDGE_SANITIZE=address,undefined")
    assert "100% tests passed" in c_build.run_ctest(tmp_path)


def test_under_libfuzzer(tmp_path: Path) -> None:
    """Guided by coverage, for a bounded time: `REFUSAL_EDGE_FUZZ_SECONDS` of it."""
    clang = clang_with_libfuzzer(tmp_path)
    if clang is None:
        pytest.skip("no clang with libFuzzer is installed: apt install clang libclang-rt-dev")
    options = [f"-DCMAKE_C_COMPILER={clang}", "-DREFUSAL_EDGE_LIBFUZZER=ON"]
    options += ["-DREFUSAL_EDGE_SANITIZE=fuzzer-no-link,address,undefined"]
    c_build.build(tmp_path / "build", *options, target="fuzz_decide", llama=False)
    seconds = os.environ.get("REFUSAL_EDGE_FUZZ_SECONDS", "10")
    target = tmp_path / "build" / "tests" / "native" / "fuzz_decide"
    limits = [f"-max_total_time={seconds}", "-max_len=4096"]
    c_build.run([str(target), *limits, "-seed=1", f"-artifact_prefix={tmp_path}/"])


def clang_with_libfuzzer(folder: Path) -> str | None:
    """A clang that can link a fuzz target: its run-time library is a package of its own."""
    source = folder / "empty.c"
    source.write_text("int LLVMFuzzerTestOneInput(const char * d, unsigned long n) { return d != 0 && n > 9000; }")
    for name in ("clang", *(f"clang-{version}" for version in range(21, 12, -1))):
        command = [name, "-fsanitize=fuzzer,address", str(source), "-o", str(folder / "empty")]
        if shutil.which(name) and subprocess.run(command, capture_output=True).returncode == 0:
            return name
    return None


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
