"""`refusal-edge doctor`: what is installed, which kernels run, whether the sampler fits the loaded llama.cpp."""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
from importlib import metadata
from typing import Any

from refusal_edge.cli import common, terminal

SUMMARY = "show versions, the instruction set in use, llama.cpp's build and devices, and the ABI check"
EXAMPLES = """  refusal-edge doctor
  REFUSAL_EDGE_ISA=serial refusal-edge doctor --json"""

UNKNOWN = "unknown"
PACKAGES = ("refusal-edge", "llama-cpp-python", "numpy", "gguf", "cffi")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        print(terminal.table([[name, _text(value)] for name, value in facts.items()]))
    usable = facts["instruction set in use"] in facts["instruction sets"]
    return 0 if usable and facts["sampler"] == "bound" else 1


def collect() -> dict[str, Any]:
    """Plain facts about this installation; the sampler line holds the reason when it cannot be bound."""
    import llama_cpp

    from refusal_edge import _native, host
    from refusal_edge.errors import HostError

    try:
        host.bind()
        sampler = "bound"
    except HostError as error:
        sampler = str(error)
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: metadata.version(name) for name in PACKAGES},
        "instruction sets": [name for name in _native.isa_names() if _native.isa_available(name)],
        "instruction set in use": common.isa_problem() or _native.isa_active(),
        "llama.cpp build": _build(),
        "llama.cpp": llama_cpp.llama_print_system_info().decode(),
        "devices": _devices(),
        "GPU offload": bool(llama_cpp.llama_supports_gpu_offload()),
        "sampler": sampler,
    }


def _build() -> str:
    """Versions as the library states them; a build number is not among them."""
    llama, ggml, commit = (_call(name, ctypes.c_char_p) for name in ("llama_version", "ggml_version", "ggml_commit"))
    return f"{_decoded(llama)}, ggml {_decoded(ggml)} (commit {_decoded(commit)})"


def _devices() -> list[str]:
    """What llama.cpp can compute on, in its own order."""
    count = _call("ggml_backend_dev_count", ctypes.c_size_t)
    return [UNKNOWN] if count is None else [_device(i) for i in range(count)]


def _device(index: int) -> str:
    device = ctypes.c_void_p(_call("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(index)))
    name = _decoded(_call("ggml_backend_dev_name", ctypes.c_char_p, device))
    about = _decoded(_call("ggml_backend_dev_description", ctypes.c_char_p, device))
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("ggml_backend_dev_memory", None, device, ctypes.byref(free), ctypes.byref(total))
    return f"{name}: {about}" + (f", {total.value / 2**30:.1f} GiB" if total.value else "")


def _call(name: str, result: Any, *arguments: Any) -> Any:
    """A function of llama.cpp that llama-cpp-python does not wrap; None if this build lacks it."""
    from llama_cpp import llama_cpp as bindings

    try:
        function = bindings._lib[name]  # by item: a function object of our own, whose types change no other
    except AttributeError:
        return None
    function.restype = result
    return function(*arguments)


def _decoded(text: bytes | None) -> str:
    return UNKNOWN if text is None else text.decode(errors="replace")


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
