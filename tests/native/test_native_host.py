"""The ABI guard: at import by field names, in this test by compiling static asserts against the installed llama.h."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import c_build
import llama_cpp
import pytest

from refusal_edge import host
from refusal_edge._native import ffi, lib
from refusal_edge.errors import HostError


def test_bound_and_bound_again() -> None:
    host.bind()
    assert lib.redge_is_bound()


def test_the_loaded_interface_is_accepted() -> None:
    host.check_sampler_interface([name for name, *_ in llama_cpp.llama_cpp.llama_sampler_i._fields_])


@pytest.mark.parametrize("change", ["missing", "extra", "renamed"])
def test_another_interface_is_an_import_error_that_names_both_versions(change: str) -> None:
    fields = [name for name, _ in ffi.typeof("struct llama_sampler_i").fields]
    loaded = {"missing": fields[:-1], "extra": [*fields, "new"], "renamed": ["title", *fields[1:]]}[change]
    with pytest.raises(HostError) as error:
        host.check_sampler_interface(loaded)
    assert isinstance(error.value, ImportError)
    assert llama_cpp.__version__ in str(error.value)
    assert host.BUILT_FOR in str(error.value)


def test_our_structs_are_those_of_the_installed_llama_h(tmp_path: Path) -> None:
    include, compiler = c_build.llama_include(), shutil.which("cc") or shutil.which("gcc")
    if include is None:
        pytest.skip("the installed llama-cpp-python ships no llama.h")
    if compiler is None:
        pytest.skip("no C compiler")
    command = [compiler, "-std=c11", "-fsyntax-only", f"-I{c_build.ROOT / 'csrc'}", f"-I{include}"]
    source = c_build.ROOT / "tests" / "native" / "abi_check.c"
    subprocess.run([*command, str(source)], check=True)

    broken = tmp_path / "broken.c"  # the check can fail: a struct with a field more is found
    broken.write_text(source.read_text().replace("SAME_SIZE(struct redge_abi_sampler, ", "SAME_SIZE(redge_policy, "))
    result = subprocess.run([*command, str(broken)], capture_output=True, text=True)
    assert result.returncode != 0
    assert "size of struct llama_sampler" in result.stderr
