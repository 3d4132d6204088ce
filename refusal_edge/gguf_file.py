"""GGUF files, read without trusting them.

Layout: magic, version, tensor count, key count, the key-value pairs, the tensor descriptions, padding, the data. Every
length in the header is checked against the bytes that are left before it is used, so a hostile file costs no more
than its own size. Arrays stay in the file until somebody asks for them: a vocabulary of 128,256 tokens is only
stepped over. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import Any, Final

from refusal_edge.errors import FormatError
from refusal_edge.gguf_types import DEFAULT_ALIGNMENT, GGML_TYPES, SCALARS, GGUFArray, GGUFFile, TensorInfo, ValueType

__all__ = ["GGML_TYPES", "GGUFArray", "GGUFFile", "MAGIC", "TensorInfo", "ValueType", "read_gguf"]

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_ALIGNMENT: Final = 4096
MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_KEY_BYTES: Final = 65_535
MAX_STRING_BYTES: Final = 1 << 30
MAX_ARRAY_COUNT: Final = 1 << 30
MAX_STRINGS: Final = 1 << 22
"""In all arrays together: each is stepped over, empty ones too. Vocabularies have a million with their merges."""
MAX_TENSOR_NAME_BYTES: Final = 63
MAX_DIMENSIONS: Final = 4
MAX_BLOCKS: Final = 512
"""llama.cpp's LLAMA_MAX_LAYERS: per-layer tables beyond it are not there."""


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Opens `path` and reads its header; close the result, or use it in a `with` statement.

    Raises:
        FormatError: not a GGUF file of version 2 or 3, truncated, or its header contradicts itself or the file.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 24:
            raise FormatError(f"{path}: too short for a GGUF file")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _Reader(Path(path), data).read()
    except BaseException:
        data.close()
        raise


class _Reader:
    """One pass over the header; `position` is the next byte to read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.file = GGUFFile(path, data)
        self.data = data
        self.size = len(data)
        self.position = 0
        self.n_strings = 0

    def read(self) -> GGUFFile:
        n_tensors, n_keys = self.preamble()
        for _ in range(n_keys):
            self.pair()
        self.file.alignment = self.alignment()
        check_values(self.file)
        begin = self.position
        described = [self.tensor_description() for _ in range(n_tensors)]
        self.file.tensors_span = (begin, self.position)
        self.place(described)
        return self.file

    def broken(self, what: str) -> FormatError:
        return FormatError(f"{self.file.path}: {what}")

    # Primitives: nothing is read that is not there.

    def skip(self, n_bytes: int, what: str) -> int:
        """Steps over `n_bytes`; returns where they began."""
        begin = self.position
        if n_bytes > self.size - begin:
            raise self.broken(
                f"{what}: needs {n_bytes} bytes, {self.size - begin} are left; the file is truncated or broken"
            )
        self.position = begin + n_bytes
        return begin

    def scalar(self, kind: ValueType, what: str) -> Any:
        layout = SCALARS[kind]
        return layout.unpack_from(self.data, self.skip(layout.size, what))[0]

    def text(self, limit: int, what: str) -> bytes:
        n_bytes = self.scalar(ValueType.UINT64, what)
        if n_bytes > limit:
            raise self.broken(f"{what}: claims {n_bytes} bytes, at most {limit} are allowed")
        begin = self.skip(n_bytes, what)
        return self.data[begin : self.position]

    def name(self, limit: int, what: str) -> str:
        raw = self.text(limit, what)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise self.broken(f"{what} {raw!r} is not UTF-8") from None
        if not name:
            raise self.broken(f"{what} is empty")
        return name

    def value_type(self, what: str) -> ValueType:
        number = self.scalar(ValueType.UINT32, what)
        if number >= len(ValueType):
            raise self.broken(f"{what}: unknown value type {number}")
        return ValueType(number)

    # The parts, in file order.

    def preamble(self) -> tuple[int, int]:
        magic = self.data[self.skip(4, "magic") : self.position]
        if magic != MAGIC:
            raise self.broken(f"not a GGUF file: begins with {magic!r}, expected {MAGIC!r}")
        version = self.scalar(ValueType.UINT32, "version")
        if version & 0xFFFF == 0:
            raise self.broken("a big-endian GGUF file; only little-endian files are supported")
        if version not in VERSIONS:
            raise self.broken(f"GGUF version {version}, supported are {VERSIONS[0]} and {VERSIONS[1]}")
        self.file.version = version
        n_tensors = self.scalar(ValueType.UINT64, "tensor count")
        n_keys = self.scalar(ValueType.UINT64, "key count")
        for what, count, limit in (("tensors", n_tensors, MAX_TENSORS), ("keys", n_keys, MAX_KEYS)):
            if count > limit:
                raise self.broken(f"claims {count} {what}, at most {limit} are allowed")
        return n_tensors, n_keys

    def pair(self) -> None:
        begin = self.position
        key = self.name(MAX_KEY_BYTES, "key")
        if key in self.file.kv:
            raise self.broken(f"key {key!r} appears twice")
        kind = self.value_type(f"key {key!r}")
        self.file.kv[key] = self.value(kind, f"key {key!r}")
        self.file.kv_types[key] = kind
        self.file.kv_spans[key] = (begin, self.position)

    def value(self, kind: ValueType, what: str) -> Any:
        if kind is ValueType.ARRAY:
            return self.array(what)
        if kind is ValueType.STRING:
            return self.text(MAX_STRING_BYTES, what).decode(errors="replace")
        value = self.scalar(kind, what)
        if kind is not ValueType.BOOL:
            return value
        if value > 1:
            raise self.broken(f"{what}: a boolean must be 0 or 1, got {value}")
        return bool(value)

    def array(self, what: str) -> GGUFArray:
        kind = self.value_type(what)
        count = self.scalar(ValueType.UINT64, what)
        if kind is ValueType.ARRAY:
            raise self.broken(f"{what}: arrays of arrays are not allowed")
        if count > MAX_ARRAY_COUNT:
            raise self.broken(f"{what}: claims {count} elements, at most {MAX_ARRAY_COUNT} are allowed")
        start = self.position
        if kind is ValueType.STRING:
            self.n_strings += count
            if self.n_strings > MAX_STRINGS:
                raise self.broken(f"{what}: {self.n_strings} strings in arrays so far, at most {MAX_STRINGS} allowed")
            self.skip(8 * count, what)  # even if every string were empty; before walking anything
            self.position = self.end_of_strings(start, count, what)
        else:
            self.skip(SCALARS[kind].size * count, what)
        return GGUFArray(self.data, kind, count, start, self.position)

    def end_of_strings(self, position: int, count: int, what: str) -> int:
        data, last, unpack = self.data, self.size - 8, SCALARS[ValueType.UINT64].unpack_from
        for i in range(count):
            if position > last:
                raise self.broken(f"{what}: string {i} of {count} is beyond the end of the file")
            position += 8 + unpack(data, position)[0]
        if position > self.size:
            raise self.broken(f"{what}: string {count - 1} of {count} is beyond the end of the file")
        return position

    def alignment(self) -> int:
        value = self.file.kv.get("general.alignment", DEFAULT_ALIGNMENT)
        kind = self.file.kv_types.get("general.alignment", ValueType.UINT32)
        if kind is not ValueType.UINT32 or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise self.broken(
                f"general.alignment must be a power of two in [8, {MAX_ALIGNMENT}] (uint32), got {value!r}"
            )
        return int(value)

    def tensor_description(self) -> tuple[TensorInfo, int]:
        """A tensor with its size, and the offset that the file claims for it within the data."""
        name = self.name(MAX_TENSOR_NAME_BYTES, "tensor name")
        what = f"tensor {name!r}"
        n_dims = self.scalar(ValueType.UINT32, what)
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise self.broken(f"{what}: {n_dims} dimensions, expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(self.scalar(ValueType.UINT64, what) for _ in range(n_dims))
        number = self.scalar(ValueType.UINT32, what)
        if number not in GGML_TYPES:
            raise self.broken(f"{what}: unknown ggml type {number}")
        type_name, block, block_bytes = GGML_TYPES[number]
        if min(shape) == 0:
            raise self.broken(f"{what}: a dimension of {shape} is 0")
        if shape[0] % block:
            raise self.broken(f"{what}: rows of {shape[0]} elements do not fill blocks of {block} ({type_name})")
        n_bytes = block_bytes * (shape[0] // block)
        for n in shape[1:]:
            n_bytes *= n
        if n_bytes > self.size:
            raise self.broken(f"{what}: shape {shape} needs {n_bytes} bytes, the file has {self.size}")
        offset = self.scalar(ValueType.UINT64, what)
        return TensorInfo(name, shape, number, 0, n_bytes), offset

    def place(self, described: list[tuple[TensorInfo, int]]) -> None:
        """Tensors lie one after the other, each padded to the alignment; llama.cpp accepts nothing else."""
        pad = self.file.alignment
        self.file.data_offset = start = -(-self.position // pad) * pad
        expected = 0
        for tensor, offset in described:
            what = f"tensor {tensor.name!r}"
            if tensor.name in self.file.tensors:
                raise self.broken(f"{what} appears twice")
            if offset != expected:
                raise self.broken(
                    f"{what}: offset {offset}, expected {expected}: tensors must follow each other without holes"
                )
            end = start + offset + tensor.n_bytes
            if end > self.size:
                raise self.broken(f"{what}: ends at byte {end}, the file has {self.size}; download or convert it again")
            self.file.tensors[tensor.name] = TensorInfo(
                tensor.name, tensor.shape, tensor.ggml_type, start + offset, tensor.n_bytes
            )
            self.file.data_end = end
            expected += -(-tensor.n_bytes // pad) * pad
        self.file.data_end = self.file.data_end or min(start, self.size)


# Some tools write 2^32 - 1 for "none", which llama.cpp takes for its default.
_MAY_BE_NONE: Final = frozenset(f"{name}_token_id" for name in ("padding", "seperator", "separator", "mask", "cls"))


def check_values(file: GGUFFile) -> None:
    """Checks values that llama.cpp uses as array lengths and indices.

    Raises:
        FormatError: they do not fit the vocabulary, or each other.
    """
    prefix = "tokenizer.ggml."
    columns = {
        "tokens": (ValueType.STRING,),
        "token_type": (ValueType.INT32,),
        "scores": (ValueType.FLOAT32, ValueType.INT32),
        "merges": (ValueType.STRING,),
    }
    for column, kinds in columns.items():
        value = file.kv.get(prefix + column)
        if value is not None and (not isinstance(value, GGUFArray) or value.element_type not in kinds):
            raise file.wrong(prefix + column, f"an array of {kinds[0].name.lower()}")
    for key, value in file.kv.items():
        if key.endswith(".block_count") and not (type(value) is int and 0 <= value <= MAX_BLOCKS):
            raise file.wrong(key, f"a number of blocks in [0, {MAX_BLOCKS}]")
        if isinstance(value, float) and not math.isfinite(value) and key.startswith(f"{file.arch}."):
            raise file.wrong(key, "a finite number")
    n_vocab = file.n_vocab()
    if n_vocab is None:
        return
    for column in ("token_type", "scores"):
        value = file.kv.get(prefix + column)
        if value is not None and len(value) != n_vocab:
            raise file.wrong(prefix + column, f"{n_vocab} elements, one for each token", len(value))
    for key, value in file.kv.items():
        if key.startswith(prefix) and key.endswith("_token_id"):
            no_more = 2**32 if key.removeprefix(prefix) in _MAY_BE_NONE else n_vocab
            if not (type(value) is int and 0 <= value < no_more):
                raise file.wrong(key, f"a token id in [0, {n_vocab - 1}]")
