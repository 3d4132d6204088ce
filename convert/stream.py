"""Weights from the source files to their place in the output, a few rows at a time, in several threads.

Every chunk is independent: read, transform, encode, write at its final offset. NumPy and the system calls release the
interpreter's lock, so threads run side by side; memory is a few chunks per thread, whatever the model's size.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

from refusal_edge.errors import ConversionError

from .plan import PlannedTensor
from .quantize import encode
from .rows import READABLE, OpenFiles

CHUNK_BYTES = 2 << 20
"""Of the source; chunks of 1 to 4 MiB are fastest, and eight times this is a thread's share of memory."""

Progress = Callable[[int], None]
"""Called with the number of output bytes just written, from any thread but never from two at once."""


class Chunk(NamedTuple):
    """Rows `start` to `stop` of a tensor."""

    tensor: PlannedTensor
    start: int
    stop: int


def chunks(tensors: Iterable[PlannedTensor], chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """All rows of all tensors, in order, in runs of whole row groups of about `chunk_bytes` source bytes."""
    for tensor in tensors:
        rows = tensor.rows
        group_bytes = rows.group * rows.n_cols * READABLE[rows.dtype].itemsize
        step = rows.group * max(1, chunk_bytes // group_bytes)
        for start in range(0, rows.n_rows, step):
            yield Chunk(tensor, start, min(start + step, rows.n_rows))


def write_tensors(
    descriptor: int, data_start: int, tensors: Iterable[PlannedTensor], *, threads: int, progress: Progress
) -> None:
    """Writes all tensors to the open file `descriptor`, whose data begins at `data_start`.

    Raises:
        ConversionError: a weight cannot be encoded; the message names its tensor.
        OSError: the disk is full.
    """
    work, lock, stop = chunks(tensors), threading.Lock(), threading.Event()

    def run(files: OpenFiles) -> None:
        try:
            while not stop.is_set():
                with lock:
                    chunk = next(work, None)
                if chunk is None:
                    return
                n_written = _write_chunk(descriptor, data_start, chunk, files)
                with lock:
                    progress(n_written)
        except BaseException:
            stop.set()
            raise

    with OpenFiles() as files, ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(run, files) for _ in range(threads)]
        try:
            wait(workers, return_when=FIRST_EXCEPTION)
        finally:  # an interrupt must not wait for the rest of the model
            stop.set()
        for worker in workers:
            worker.result()


def _write_chunk(descriptor: int, data_start: int, chunk: Chunk, files: OpenFiles) -> int:
    tensor, start, stop = chunk
    try:
        rows = tensor.rows.read(files, start, stop)
        data = encode(rows, tensor.rows.dtype, tensor.type)
    except ConversionError as error:
        raise type(error)(f"{tensor.name}: {error}") from None
    write_all(descriptor, data.data.cast("B"), data_start + tensor.offset + start * tensor.row_bytes)
    return data.nbytes


def write_all(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """`os.pwrite`, until all of `data` is written at `offset`."""
    view = memoryview(data)
    while view:
        n_written = os.pwrite(descriptor, view, offset)
        view, offset = view[n_written:], offset + n_written
