"""Writes the C source of the extension module `_redge` from the C headers; run by CMake.

    python build_module.py CSRC_DIR OUTPUT.c

The declarations cffi needs are the headers themselves without preprocessor lines: no second copy to keep.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi

HEADERS = ("refusal_edge.h", "llama_abi.h")


def declarations(header: str) -> str:
    """The text of a C header reduced to what cffi's parser takes: declarations and integer constants."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = re.sub(r'#ifdef __cplusplus\nextern "C" \{\n#endif|#ifdef __cplusplus\n\}\n#endif', "", text)
    text = text.replace("\\\n", " ")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#") or _is_integer(line)) + "\n"


def _is_integer(line: str) -> bool:
    return re.fullmatch(r"#define \w+ +\d+\s*", line) is not None


def write_source(csrc: Path, output: Path) -> None:
    builder = cffi.FFI()
    for name in HEADERS:
        builder.cdef(declarations((csrc / name).read_text(encoding="utf-8")))
    builder.set_source("refusal_edge._native._redge", "".join(f'#include "{name}"\n' for name in HEADERS))
    builder.emit_c_code(str(output))


if __name__ == "__main__":
    write_source(Path(sys.argv[1]), Path(sys.argv[2]))
