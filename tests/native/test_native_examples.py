"""The C examples compile as their comments say and do what they claim."""

from __future__ import annotations

from pathlib import Path

import c_build
import pytest

SOURCES = c_build.ROOT / "examples"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    c_build.run([c_build.tool("cmake"), "-S", str(c_build.ROOT), "-B", str(folder), "-DREFUSAL_EDGE_PYTHON=OFF"])
    c_build.run([c_build.tool("cmake"), "--build", str(folder)])
    return folder / "libredge.a"


def compile_example(name: str, library: Path, out: Path, *more: str) -> str:
    source = str(SOURCES / f"{name}.c")
    warnings = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    include = f"-I{c_build.ROOT / 'csrc'}"
    c_build.run([c_build.tool("cc"), *warnings, include, source, str(library), *more, "-lm", "-o", str(out / name)])
    return str(out / name)


def test_rule_alone(library: Path, tmp_path: Path) -> None:
    lines = c_build.run([compile_example("decide", library, tmp_path)]).splitlines()
    verdicts = [line.split(":")[1].split("(")[0].strip() for line in lines]
    assert verdicts == ["respond -", "refuse safety", "respond -", "error"]


def test_in_a_plain_llama_cpp_chain(library: Path, tmp_path: Path, demo_gguf: Path) -> None:
    include, lib = c_build.llama_include(), c_build.PACKAGE / "lib"
    if include is None:
        pytest.skip("llama-cpp-python was installed without its headers")
    links = [f"-isystem{include}", f"-L{lib}", "-lllama", "-lggml-base", f"-Wl,-rpath,{lib}", f"-Wl,-rpath-link,{lib}"]
    program = compile_example("sampler", library, tmp_path, *links)
    question = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is the capital of France?<|eot_id|>"
    answer = c_build.run([program, str(demo_gguf), question + "<|start_header_id|>assistant<|end_header_id|>\n\n"])
    assert answer.startswith("respond, control mass ")
    assert "Paris" in answer
