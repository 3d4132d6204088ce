"""Where the rows of an output tensor come from: a file, and what is done to them on the way.

Every source is a matrix that can be read a few rows at a time, so that no tensor is ever in memory as a whole.
One-dimensional tensors are columns.
"""

from __future__ import annotations

import math
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refusal_edge.errors import FormatError

from .named_errors import naming
from .safetensors import StoredTensor

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]

READABLE: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
"""How a stored dtype looks in NumPy; bfloat16 as its bits."""


MAX_KEPT = 8
"""Small matrices of an adapter in memory: two for each thread."""


class OpenFiles:
    """The source files, each opened once and read at explicit offsets, so that threads can share them."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._kept: OrderedDict[Rows, Float32Array] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._kept.clear()

    def read(self, path: Path, offset: int, n_bytes: int) -> bytes:
        """`n_bytes` bytes at `offset` of `path`.

        Raises:
            FormatError: the file has become shorter since its header was read.
            OSError: the disk cannot read it.
        """
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_RDONLY)
            descriptor = self._descriptors[path]
        with naming(path):
            data = os.pread(descriptor, n_bytes, offset)
            while len(data) < n_bytes:
                more = os.pread(descriptor, n_bytes - len(data), offset + len(data))
                if not more:
                    raise FormatError(f"{path}: ended at byte {offset + len(data)} while it was being read")
                data += more
        return data

    def kept(self, rows: Rows) -> Float32Array:
        """All of a small matrix as float32, which every chunk of a large one needs; the last few are remembered."""
        with self._lock:
            if rows in self._kept:
                self._kept.move_to_end(rows)
                return self._kept[rows]
        values = to_float32(rows.read(self, 0, rows.n_rows), rows.dtype)
        with self._lock:
            self._kept[rows] = values
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return values


class Rows(ABC):
    """A tensor of `shape`, as `n_rows` x `n_cols` values of a stored `dtype`, read in whole groups of `group` rows."""

    def __init__(self, shape: tuple[int, ...], dtype: str, group: int = 1) -> None:
        self.shape, self.dtype, self.group = shape, dtype, group
        self.n_rows, self.n_cols = (shape[0], math.prod(shape[1:])) if shape else (1, 1)

    @abstractmethod
    def read(self, files: OpenFiles, start: int, stop: int) -> Array:
        """Rows `start` to `stop`, an array of `READABLE[dtype]` of shape (stop - start, n_cols), maybe read-only."""


class StoredRows(Rows):
    """The rows of a tensor as they lie in its safetensors file."""

    def __init__(self, tensor: StoredTensor) -> None:
        super().__init__(tensor.shape, tensor.dtype)
        self.tensor = tensor

    def read(self, files: OpenFiles, start: int, stop: int) -> Array:
        dtype = READABLE[self.dtype]
        row_bytes = self.n_cols * dtype.itemsize
        data = files.read(self.tensor.path, self.tensor.offset + start * row_bytes, (stop - start) * row_bytes)
        return np.frombuffer(data, dtype).reshape(stop - start, self.n_cols)


class ConstantRows(Rows):
    """A small float32 vector that the configuration implies."""

    def __init__(self, values: Float32Array) -> None:
        super().__init__(values.shape, "F32")
        self.values = values

    def read(self, files: OpenFiles, start: int, stop: int) -> Array:
        return self.values[start:stop, None]


class InterleavedRows(Rows):
    """Query or key rows: from halves (i, i + d/2) that rotate together to neighbours (2i, 2i + 1), head by head."""

    def __init__(self, source: Rows, head_dim: int) -> None:
        super().__init__(source.shape, source.dtype, group=head_dim)
        self.source = source

    def read(self, files: OpenFiles, start: int, stop: int) -> Array:
        rows = self.source.read(files, start, stop)
        halves = rows.reshape(-1, 2, self.group // 2, self.n_cols)
        return np.reshape(halves.swapaxes(1, 2), rows.shape)


class ShiftedRows(Rows):
    """Rows with a constant added, in float32."""

    def __init__(self, source: Rows, shift: float) -> None:
        super().__init__(source.shape, "F32", source.group)
        self.source, self.shift = source, np.float32(shift)

    def read(self, files: OpenFiles, start: int, stop: int) -> Array:
        rows: Float32Array = to_float32(self.source.read(files, start, stop), self.source.dtype) + self.shift
        return rows


def to_float32(rows: Array, dtype: str) -> Float32Array:
    """`rows` of a stored dtype as float32, exactly."""
    if dtype == "BF16":
        return np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
    return rows.astype(np.float32, copy=False)
