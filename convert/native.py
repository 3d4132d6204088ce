"""ggml's own quantizers, for the block types that NumPy has none for."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from refusal_edge.errors import ConversionError, HostError

from .rows import Array, Float32Array

_ROWS = ctypes.c_int64


def quantize_rows(values: Float32Array, kind: Type, row_bytes: int) -> Array:
    """Contiguous `values`, shape (rows, cols), as rows of `row_bytes` bytes of the ggml type `kind`.

    Raises:
        ConversionError: ggml finds the result invalid.
        HostError: llama-cpp-python's ggml has no such function.
    """
    n_rows, n_cols = values.shape
    out = np.empty((n_rows, row_bytes), np.uint8)
    ggml = _ggml()
    n_bytes = ggml.ggml_quantize_chunk(int(kind), values.ctypes.data, out.ctypes.data, 0, n_rows, n_cols, None)
    if n_bytes != out.nbytes or not ggml.ggml_validate_row_data(int(kind), out.ctypes.data, out.nbytes):
        raise ConversionError(
            f"quantized to {kind.name}, it has blocks that ggml calls invalid; the checkpoint is broken"
        )
    return out


@cache
def _ggml() -> Any:
    from llama_cpp import llama_cpp as bindings

    ggml = bindings._lib  # libllama, whose symbols include those of the ggml it is linked to
    try:
        quantize, validate = ggml.ggml_quantize_chunk, ggml.ggml_validate_row_data
    except AttributeError:
        raise HostError("llama-cpp-python's ggml has no ggml_quantize_chunk; upgrade llama-cpp-python") from None
    pointer = ctypes.c_void_p
    quantize.restype, quantize.argtypes = (
        ctypes.c_size_t,
        [ctypes.c_int, pointer, pointer, _ROWS, _ROWS, _ROWS, pointer],
    )
    validate.restype, validate.argtypes = ctypes.c_bool, [ctypes.c_int, pointer, ctypes.c_size_t]
    return ggml
