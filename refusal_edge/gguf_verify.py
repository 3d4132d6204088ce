"""Reads every tensor of a GGUF file again: are all bytes there, and are the numbers numbers?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from refusal_edge.gguf_file import GGML_TYPES, GGUFFile, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHUNK_BYTES: Final = 8 << 20

# Where the float16 factors lie in a block (ggml/src/ggml-common.h); other types are only read and hashed.
SCALE_OFFSETS: Final = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


@dataclass(frozen=True)
class Verification:
    """Attributes:
    sha256: of the data of all tensors, in file order, without padding: equal for equal weights, whatever the keys.
    n_bytes: how many bytes were read. problems: one line each; empty for a sound file.
    """

    sha256: str
    n_bytes: int
    problems: tuple[str, ...]


def verify(file: GGUFFile, progress: Callable[[int], None] | None = None) -> Verification:
    """Reads the range of every tensor from the disk.

    Args:
        progress: called with the number of bytes read since the last call.

    Raises:
        OSError: the disk cannot read them.
    """
    digest, problems, n_bytes = hashlib.sha256(), list[str](), 0
    with open(file.path, "rb") as stream:
        for tensor in file.tensors.values():
            n_broken = n_read = 0
            for chunk in _chunks(stream.fileno(), tensor):
                digest.update(chunk)
                n_broken += _not_finite(chunk, tensor.type_name)
                n_read += len(chunk)
                if progress is not None:
                    progress(len(chunk))
            n_bytes += n_read
            if n_read < tensor.n_bytes:
                problems.append(f"tensor {tensor.name!r}: {tensor.n_bytes - n_read} of {tensor.n_bytes} bytes are gone")
            if n_broken:
                problems.append(f"tensor {tensor.name!r}: {n_broken} values or scales are NaN or infinite")
    return Verification(digest.hexdigest(), n_bytes, tuple(problems))


def _chunks(descriptor: int, tensor: TensorInfo) -> Iterator[bytes]:
    """The tensor's bytes in chunks of whole blocks; ends early where the file does."""
    block_bytes = GGML_TYPES[tensor.ggml_type][2]
    step = CHUNK_BYTES // block_bytes * block_bytes
    for begin in range(0, tensor.n_bytes, step):
        wanted = min(step, tensor.n_bytes - begin)
        chunk = os.pread(descriptor, wanted, tensor.offset + begin)
        yield chunk
        if len(chunk) < wanted:
            return


def _not_finite(chunk: bytes, type_name: str) -> int:
    import numpy as np

    block_bytes = next(size for name, _, size in GGML_TYPES.values() if name == type_name)
    whole = np.frombuffer(chunk[: len(chunk) // block_bytes * block_bytes], dtype=np.uint8)
    if type_name in ("F32", "F64"):
        return int(np.count_nonzero(~np.isfinite(whole.view("<f4" if type_name == "F32" else "<f8"))))
    if type_name == "F16":
        return _half_not_finite(whole.view("<u2"), exponent=0x7C00)
    if type_name == "BF16":
        return _half_not_finite(whole.view("<u2"), exponent=0x7F80)
    blocks = whole.reshape(-1, block_bytes)
    return sum(
        _half_not_finite(np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2"), exponent=0x7C00)
        for at in SCALE_OFFSETS.get(type_name, ())
    )


def _half_not_finite(bits: npt.NDArray[np.uint16], *, exponent: int) -> int:
    """How many 16-bit floats have an exponent of all ones: NaN or infinite."""
    import numpy as np

    return int(np.count_nonzero((bits & exponent) == exponent))
