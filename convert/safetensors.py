"""Safetensors headers, read without trusting them.

A file is a little-endian u64 header length, that many bytes of JSON, then the data. The JSON maps each tensor name
to `dtype`, `shape` and `data_offsets` (begin, end) relative to the data. Everything the header claims is checked
against the file before it is used: the offsets must tile the data exactly, with no hole and no overlap, and each
range must be as long as dtype and shape say. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_edge.errors import FormatError

from .jsonfile import parse_object, read_object, shown

MAX_HEADER_BYTES = 16 << 20  # 700 tensors of a 70B model need 0.1 MB
MAX_DIMENSIONS = 8

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `n_bytes` bytes at `offset` of `path`, row-major."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file, in file order.

    Raises:
        FormatError: the file is missing, truncated, or its header does not describe exactly its data.
    """
    try:
        with open(path, "rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise FormatError(f"{path}: {file_bytes} bytes is too short for a safetensors file; download it again")
            header_bytes = int.from_bytes(prefix, "little")
            if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise FormatError(
                    f"{path}: claims a header of {header_bytes} bytes, allowed are at most "
                    f"{min(MAX_HEADER_BYTES, file_bytes - 8)}; the file is truncated or not safetensors"
                )
            header = parse_object(file.read(header_bytes), f"{path} (header)")
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from None

    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ must map names to strings")

    data_start = 8 + header_bytes
    tensors = [_stored_tensor(name, entry, path, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    _check_tiling(tensors, data_start, file_bytes, path)
    return {tensor.name: tensor for tensor in tensors}


def _stored_tensor(name: str, entry: Any, path: Path, data_start: int) -> StoredTensor:
    def broken(what: str) -> FormatError:
        return FormatError(f"{path}: tensor {shown(name)}: {what}")

    if not isinstance(entry, dict):
        raise broken(f"expected an object, got {shown(entry)}")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise broken(f"unknown dtype {shown(dtype)}, allowed are {', '.join(DTYPE_BYTES)}")
    if not _is_list_of_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise broken(f"shape must be at most {MAX_DIMENSIONS} integers >= 0, got {shown(shape)}")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(f"data_offsets must be [begin, end] with begin <= end, got {shown(offsets)}")
    n_bytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if n_bytes != offsets[1] - offsets[0]:
        raise broken(f"{dtype} {shape} needs {shown(n_bytes)} bytes, its offsets give {offsets[1] - offsets[0]}")
    return StoredTensor(name, path, dtype, tuple(shape), data_start + offsets[0], n_bytes)


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_tiling(tensors: Iterable[StoredTensor], data_start: int, file_bytes: int, path: Path) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise FormatError(f"{path}: tensor {shown(tensor.name)} at byte {tensor.offset} {kind} (expected {end})")
        end += tensor.n_bytes
    if end != file_bytes:
        kind = "is truncated" if end > file_bytes else "has bytes that no tensor claims"
        raise FormatError(
            f"{path}: {kind}: the header describes {end} bytes, the file has {file_bytes}; download it again"
        )


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`: one `model.safetensors`, or shards with or without their index.

    Where both are there, the single file is read, as transformers does (`other_weights` says so).

    Raises:
        FormatError: no safetensors, a missing or broken shard, an index that points outside `folder` or does not
            name every tensor exactly once.
    """
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_indexed(folder)
    shards = sorted(entry.name for entry in folder.iterdir() if SHARD_NAME.fullmatch(entry.name))
    if shards:
        return _read_unindexed(folder, shards)
    raise FormatError(_nothing_to_read(folder))


def other_weights(folder: Path) -> Iterator[str]:
    """Yields a warning if there are shards, or an index of some, that `read_weights` does not look at."""
    if not (folder / SINGLE_FILE).is_file():
        return
    names = (entry.name for entry in folder.iterdir())
    if others := sorted(name for name in names if name == INDEX_FILE or SHARD_NAME.fullmatch(name)):
        yield (
            f"{SINGLE_FILE} is converted, as transformers would load it; {_some(others)} beside it "
            "belongs to other weights: remove what is old"
        )


def _read_indexed(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX_FILE
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index}: weight_map must be an object that maps tensor names to file names")
    for name, shard in weight_map.items():
        if not _is_plain_file_name(shard):
            raise FormatError(
                f"{index}: tensor {shown(name)} points to {shown(shard)}; "
                "a shard must be the plain name of a .safetensors file next to the index"
            )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise FormatError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing ({_some(missing)}); download them again"
        )
    tensors = _merge(read_header(folder / shard) for shard in shards)
    lost = [name for name, shard in weight_map.items() if name not in tensors or tensors[name].path.name != shard]
    if lost:
        raise FormatError(f"{index}: {len(lost)} tensors are not in the shard it names ({_some(lost)})")
    extra = [name for name in tensors if name not in weight_map]
    if extra:
        raise FormatError(f"{index}: {len(extra)} tensors of the shards are not listed ({_some(extra)})")
    return tensors


def _read_unindexed(folder: Path, shards: list[str]) -> dict[str, StoredTensor]:
    total = int(shards[0][-17:-12])
    expected = [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, min(total, 10_000) + 1)]
    if shards != expected:
        missing = sorted(set(expected) - set(shards)) or sorted(set(shards) - set(expected))
        raise FormatError(
            f"{folder}: the shards do not form one set of {total} ({_some(missing)} missing or unexpected)"
        )
    if strange := [shard for shard in shards if not (folder / shard).is_file()]:
        raise FormatError(f"{folder}: {_some(strange)} is not a regular file")
    return _merge(read_header(folder / shard) for shard in shards)


def _merge(headers: Iterable[dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for name, tensor in header.items():
            if name in tensors:
                raise FormatError(
                    f"tensor {shown(name)} is stored twice, in {tensors[name].path.name} and {tensor.path.name}"
                )
            tensors[name] = tensor
    return tensors


def _is_plain_file_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and name == os.path.basename(name)
        and not name.startswith(".")
        and name.isprintable()
        and "\\" not in name
    )


def _nothing_to_read(folder: Path) -> str:
    pickles = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix in (".bin", ".pt", ".pth") and entry.name != "training_args.bin"
    )
    if pickles:
        return (
            f"{folder}: only pickle weights ({_some(pickles)}), which can run code when read; load the model in "
            "transformers and save it again with save_pretrained(..., safe_serialization=True)"
        )
    return f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}; SRC must be the folder of a Hugging Face checkpoint"


def _some(names: list[str], count: int = 3) -> str:
    listed = ", ".join(shown(name) for name in names[:count])
    return listed if len(names) <= count else f"{listed} and {len(names) - count} more"
