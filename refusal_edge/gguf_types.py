"""What a GGUF file consists of: values, arrays, tensors, and their types."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from refusal_edge.errors import FormatError
from refusal_edge.numbers import shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ARCHITECTURE: Final = "general.architecture"
DEFAULT_ALIGNMENT: Final = 32


class ValueType(IntEnum):
    """Types of a metadata value; the numbers are the file's."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALARS: Final = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<B"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}

# ggml type: name, elements per block, bytes per block (ggml/src/ggml.c, type_traits).
GGML_TYPES: Final = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

_U64: Final = SCALARS[ValueType.UINT64]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `n_bytes` bytes at `offset` from the file's start; `shape` in ggml order, rows last."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    n_bytes: int

    @property
    def type_name(self) -> str:
        return GGML_TYPES[self.ggml_type][0]


class GGUFArray:
    """A metadata array that is still in the file. Valid while its `GGUFFile` is open."""

    def __init__(self, data: mmap.mmap, element_type: ValueType, count: int, start: int, end: int) -> None:
        self.element_type = element_type
        self.count = count
        self._data = data
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"<{self.count} x {self.element_type.name.lower()}>"

    def __iter__(self) -> Iterator[Any]:
        """The elements: bytes for strings, since nothing says that they are UTF-8, else numbers."""
        if self.element_type is not ValueType.STRING:
            yield from self.numpy().tolist()
            return
        position = self._start
        for _ in range(self.count):
            (length,) = _U64.unpack_from(self._data, position)
            position += 8 + length
            yield self._data[position - length : position]

    def tolist(self) -> list[Any]:
        return list(self)

    def numpy(self) -> npt.NDArray[np.generic]:
        """A copy as a one-dimensional array; not for strings."""
        import numpy as np

        if self.element_type is ValueType.STRING:
            raise TypeError("an array of strings has no NumPy form: use tolist()")
        name = "bool" if self.element_type is ValueType.BOOL else SCALARS[self.element_type].format
        return np.frombuffer(self._data[self._start : self._end], dtype=name)

    def take(self, indices: Iterable[int]) -> dict[int, Any]:
        """Some elements by index; indices outside the array are left out."""
        wanted = {i for i in indices if 0 <= i < self.count}
        last = max(wanted, default=-1)
        return {i: value for i, value in zip(range(last + 1), self) if i in wanted}


class GGUFFile:
    """The header of an open GGUF file.

    Attributes:
        path, version, alignment: of the file; alignment in bytes.
        kv: key -> int, float, bool, str or `GGUFArray`, in file order.
        kv_types: key -> type of its value.
        kv_spans: key -> (begin, end), the bytes of the whole pair in the file, key included.
        tensors: name -> `TensorInfo`, in file order.
        tensors_span: (begin, end), the bytes of all tensor descriptions.
        data_offset: byte at which the tensor data begins; data_end: the end of the last tensor, without padding.
    """

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.version = 0
        self.alignment = DEFAULT_ALIGNMENT
        self.kv: dict[str, Any] = {}
        self.kv_types: dict[str, ValueType] = {}
        self.kv_spans: dict[str, tuple[int, int]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.tensors_span = (0, 0)
        self.data_offset = 0
        self.data_end = 0
        self._data = data

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._data.close()

    def raw(self, begin: int, end: int) -> bytes:
        """Bytes of the header, as they stand in the file."""
        return self._data[begin:end]

    def text(self, key: str) -> str | None:
        """The value of `key` if it is a string."""
        value = self.kv.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """The value of `key` if it is an integer."""
        value = self.kv.get(key)
        return value if type(value) is int else None

    @property
    def arch(self) -> str:
        """The architecture, which the keys of its hyperparameters begin with."""
        return self.text(ARCHITECTURE) or ""

    def hparam(self, name: str, default: int = 0) -> int:
        """The integer `<architecture>.<name>`; `default` where there is none."""
        value = self.integer(f"{self.arch}.{name}")
        return default if value is None else value

    def head_length(self, name: str) -> int:
        """How long a "key" or "value" of one attention head is; 0 where the file does not say."""
        n_heads = self.hparam("attention.head_count")
        return self.hparam(f"attention.{name}_length", self.hparam("embedding_length") // n_heads if n_heads else 0)

    def wrong(self, key: str, expected: str, got: object = None) -> FormatError:
        """The error for a value; `got` says what is wrong with it where that is not the value itself."""
        found = shown(self.kv.get(key)) if got is None else got
        return FormatError(f"{self.path}: key {key!r}: expected {expected}, got {found}")

    def n_vocab(self) -> int | None:
        """How many tokens the vocabulary has; None for a file without one."""
        tokens = self.kv.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, GGUFArray) else None
