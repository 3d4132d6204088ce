"""Binds the native library to the llama.cpp that llama-cpp-python has loaded.

Nothing is linked: the table of functions (`redge_host_api`, csrc/llama_abi.h) is filled with addresses looked
up in the loaded libraries, once the sampler interface was found to be the one we were compiled for.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

import llama_cpp
from llama_cpp import llama_cpp as bindings

from refusal_edge._native import ffi, lib
from refusal_edge._native.status import check
from refusal_edge.errors import HostError

BUILT_FOR: Final = "0.3.36"
"""The llama-cpp-python version whose structs csrc/llama_abi.h declares."""


def bind() -> None:
    """Binds once per process; later calls return at once.

    Raises:
        HostError: the loaded llama-cpp-python has another sampler interface, or lacks a function.
    """
    if lib.redge_is_bound():
        return
    check_sampler_interface([name for name, *_ in bindings.llama_sampler_i._fields_])
    table = ffi.new("redge_host_api *", {"size": ffi.sizeof("redge_host_api")})
    for name, field in ffi.typeof("redge_host_api").fields:
        if name != "size":
            setattr(table, name, ffi.cast(field.type, _address(name)))
    check(lib.redge_bind(table))


def check_sampler_interface(loaded: list[str]) -> None:
    """Compares the fields of the loaded `llama_sampler_i` with those the native library was compiled for.

    Raises:
        HostError: they differ; names both versions.
    """
    ours = [name for name, _ in ffi.typeof("struct llama_sampler_i").fields]
    if loaded != ours:
        different = next((pair for pair in _aligned(ours, loaded) if pair[0] != pair[1]), ("", ""))
        raise HostError(
            f"llama-cpp-python {llama_cpp.__version__} has another llama_sampler_i than the {BUILT_FOR} "
            f"that refusal-edge was built for (expected field {different[0]!r}, found {different[1]!r}): "
            f"run `pip install 'llama-cpp-python=={BUILT_FOR}'`"
        )


def _aligned(ours: list[str], loaded: list[str]) -> list[tuple[str, str]]:
    length = max(len(ours), len(loaded))
    return list(zip(ours + [""] * (length - len(ours)), loaded + [""] * (length - len(loaded))))


def _address(name: str) -> int:
    for library in _libraries():
        function = getattr(library, name, None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    raise HostError(
        f"llama-cpp-python {llama_cpp.__version__} has no function {name}: "
        f"refusal-edge was built for {BUILT_FOR}; run `pip install 'llama-cpp-python=={BUILT_FOR}'`"
    )


@cache
def _libraries() -> tuple[Any, ...]:
    return (bindings._lib,)
