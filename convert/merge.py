"""Rows of a base model with an adapter's update in them, computed in float32 a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rows import Array, Float32Array, OpenFiles, Rows, to_float32


@dataclass(frozen=True)
class LowRank:
    """The update `scale * B @ A`: `a` is (rank, n_cols), `b` is (n_rows, rank)."""

    a: Rows
    b: Rows
    scale: float

    def read(self, files: OpenFiles, start: int, stop: int) -> Float32Array:
        update: Float32Array = read_float32(self.b, files, start, stop) @ files.kept(self.a)
        update *= np.float32(self.scale)
        return update


@dataclass(frozen=True)
class LowRankEmbedding:
    """The update of an embedding, `scale * (B @ A).T`: `a` is (rank, n_rows), `b` is (n_cols, rank)."""

    a: Rows
    b: Rows
    scale: float

    def read(self, files: OpenFiles, start: int, stop: int) -> Float32Array:
        update: Float32Array = files.kept(self.a)[:, start:stop].T @ files.kept(self.b).T
        update *= np.float32(self.scale)
        return update


class MergedRows(Rows):
    """W + update; with a `magnitude` (DoRA) each row is then scaled to the length that was learned for it."""

    def __init__(self, source: Rows, update: LowRank | LowRankEmbedding, magnitude: Rows | None = None) -> None:
        super().__init__(source.shape, "F32", source.group)
        self.source, self.update, self.magnitude = source, update, magnitude

    def read(self, files: OpenFiles, start: int, stop: int) -> Array:
        merged: Float32Array = read_float32(self.source, files, start, stop) + self.update.read(files, start, stop)
        if self.magnitude is not None:
            lengths = np.linalg.norm(merged, axis=1, keepdims=True)
            merged *= read_float32(self.magnitude, files, start, stop) / lengths
        return merged


class ReplacedRows(Rows):
    """A matrix in which some rows were learned anew: row `ids[i]` is row i of `rows`."""

    def __init__(self, source: Rows, ids: list[int], rows: Rows) -> None:
        super().__init__(source.shape, "F32", source.group)
        self.source, self.ids, self.rows = source, np.array(ids), rows

    def read(self, files: OpenFiles, start: int, stop: int) -> Array:
        values = np.array(read_float32(self.source, files, start, stop))
        inside = np.flatnonzero((self.ids >= start) & (self.ids < stop))
        values[self.ids[inside] - start] = files.kept(self.rows)[inside]
        return values


def read_float32(rows: Rows, files: OpenFiles, start: int, stop: int) -> Float32Array:
    return to_float32(rows.read(files, start, stop), rows.dtype)
