"""GGUF files put together byte by byte, so that every part of them can lie."""

from __future__ import annotations

import struct
from typing import Any

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
_FORMATS = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<B", UINT64: "<Q"}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data) if length is None else length) + data


def value(kind: int, content: Any) -> bytes:
    return text(content) if kind == STRING else struct.pack(_FORMATS[kind], content)


def pair(key: str | bytes, kind: int, content: Any) -> bytes:
    return text(key) + u32(kind) + value(kind, content)


def array(key: str, kind: int, items: list[Any], count: int | None = None) -> bytes:
    head = text(key) + u32(ARRAY) + u32(kind) + u64(len(items) if count is None else count)
    return head + b"".join(value(kind, item) for item in items)


def tensor(
    name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    dims = b"".join(map(u64, shape))
    return text(name) + u32(len(shape) if n_dims is None else n_dims) + dims + u32(kind) + u64(offset)


def gguf(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    data: bytes = b"",
    alignment: int = 32,
) -> bytes:
    pairs, tensors = pairs or [], tensors or []
    counts = u64(len(tensors) if n_tensors is None else n_tensors) + u64(len(pairs) if n_pairs is None else n_pairs)
    header = magic + u32(version) + counts + b"".join(pairs + tensors)
    return header + bytes(-len(header) % alignment) + data
