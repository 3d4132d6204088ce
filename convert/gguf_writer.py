"""The part of a GGUF file before its tensor data: magic, key-value pairs, tensor descriptions.

`gguf.GGUFWriter` takes 0.7 s and three copies for a vocabulary of 128k tokens, skips empty strings and arrays without a
word, and writes straight to the final path. Layout: ggml/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

ALIGNMENT = 32
MAX_TENSOR_NAME_BYTES = 63

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}
_pack_u32 = struct.Struct("<I").pack
_pack_u64 = struct.Struct("<Q").pack


class KeyValue(NamedTuple):
    """One metadata entry; `sub_type` is the element type when `type` is ARRAY."""

    key: str
    value: Any
    type: GGUFValueType
    sub_type: GGUFValueType | None = None


class TensorInfo(Protocol):
    """What the header says about a tensor. `shape` is row-major; `offset` counts from the start of the data."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> GGMLQuantizationType: ...
    @property
    def offset(self) -> int: ...


def encode_header(pairs: Sequence[KeyValue], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the tensor data, padded to `ALIGNMENT`."""
    parts = [b"GGUF", _pack_u32(3), _pack_u64(len(tensors)), _pack_u64(len(pairs))]
    parts.extend(encode_pair(pair) for pair in pairs)
    for tensor in tensors:
        parts.append(_string(tensor.name))
        dimensions = tensor.shape[::-1]  # ggml counts from the fastest one
        parts.append(struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, tensor.type, tensor.offset))
    header = b"".join(parts)
    return header + bytes(padding(len(header)))


def encode_pair(pair: KeyValue) -> bytes:
    """One key and its value."""
    return b"".join((_string(pair.key), _pack_u32(pair.type), *_value(pair)))


def padding(n_bytes: int) -> int:
    """How many zero bytes bring `n_bytes` to the next multiple of `ALIGNMENT`."""
    return -n_bytes % ALIGNMENT


def _value(pair: KeyValue) -> Iterator[bytes]:
    if pair.type is not GGUFValueType.ARRAY:
        yield _string(pair.value) if pair.type is GGUFValueType.STRING else struct.pack(_SCALARS[pair.type], pair.value)
        return
    if pair.sub_type is None:
        raise TypeError(f"{pair.key}: an array needs an element type")
    yield _pack_u32(pair.sub_type) + _pack_u64(len(pair.value))
    yield from _elements(pair.value, pair.sub_type)


def _elements(values: Iterable[Any], kind: GGUFValueType) -> Iterator[bytes]:
    if kind is GGUFValueType.STRING:
        for text in values:
            data = text.encode() if isinstance(text, str) else text
            yield _pack_u64(len(data))
            yield data
    else:
        yield np.asarray(values, dtype=np.dtype(_SCALARS[kind].replace("?", "b"))).tobytes()


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return _pack_u64(len(data)) + data
