"""A GGUF file with other keys and the same tensors."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Mapping
from typing import Final

from refusal_edge.errors import FormatError
from refusal_edge.gguf_file import MAGIC, GGUFFile

from .gguf_writer import KeyValue, encode_pair

COPY_BYTES: Final = 64 << 20
READ_BYTES: Final = 4 << 20
_NOT_HERE: Final = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def rewritten_header(file: GGUFFile, changed: Mapping[str, KeyValue | None], *, with_tensors: bool = True) -> bytes:
    """The header of `file` with some keys replaced in place, dropped (None) or added at the end; the rest as it was.

    Offsets of tensors count from the start of the data, so their descriptions stay as they are.
    """
    pairs = []
    for key, (begin, end) in file.kv_spans.items():
        if key not in changed:
            pairs.append(file.raw(begin, end))
        elif (pair := changed[key]) is not None:
            pairs.append(encode_pair(pair))
    pairs += [encode_pair(pair) for key, pair in changed.items() if pair is not None and key not in file.kv]
    n_tensors = len(file.tensors) if with_tensors else 0
    tensors = file.raw(*file.tensors_span) if with_tensors else b""
    header = MAGIC + struct.pack("<IQQ", file.version, n_tensors, len(pairs)) + b"".join(pairs) + tensors
    return header + bytes(-len(header) % file.alignment)


def copy_range(
    source: int, begin: int, target: int, at: int, n_bytes: int, progress: Callable[[int], None] | None = None
) -> None:
    """Copies bytes between two open files; inside the kernel, sharing blocks, where the file system can.

    Raises:
        FormatError: the source ends too early.
        OSError: the disk is full.
    """
    copy = _in_kernel if hasattr(os, "copy_file_range") else _by_hand
    done = 0
    while done < n_bytes:
        try:
            n = copy(source, begin + done, target, at + done, n_bytes - done)
        except OSError as error:
            if copy is _by_hand or error.errno not in _NOT_HERE:
                raise
            copy = _by_hand
            continue
        if n == 0:
            raise FormatError(f"the source ends {n_bytes - done} bytes too early; it changed while it was copied")
        done += n
        if progress is not None:
            progress(n)


def _in_kernel(source: int, begin: int, target: int, at: int, n_bytes: int) -> int:
    return os.copy_file_range(source, target, min(n_bytes, COPY_BYTES), begin, at)


def _by_hand(source: int, begin: int, target: int, at: int, n_bytes: int) -> int:
    data = memoryview(os.pread(source, min(n_bytes, READ_BYTES), begin))
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], at + done)
    return done
