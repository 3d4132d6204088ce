"""`refusal-edge doctor`: what is installed, which kernels run, whether the sampler fits the loaded llama.cpp."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from typing import Any

from refusal_edge.cli import terminal

SUMMARY = "show versions, the instruction set in use, llama.cpp's build and devices, and the ABI check"
EXAMPLES = """  refusal-edge doctor
  REFUSAL_EDGE_ISA=serial refusal-edge doctor --json"""

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
        "instruction set in use": _native.isa_active(),
        "llama.cpp": llama_cpp.llama_print_system_info().decode(),
        "GPU offload": bool(llama_cpp.llama_supports_gpu_offload()),
        "sampler": sampler,
    }


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
