"""Every tensor of the output file before a byte of it is written: name, shape, type, place, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from refusal_edge.errors import ConversionError

from .config import Config
from .family import ROTATED, Family
from .gguf_writer import MAX_TENSOR_NAME_BYTES, padding
from .jsonfile import shown
from .quantize import row_bytes
from .rows import READABLE, ConstantRows, InterleavedRows, Rows, ShiftedRows

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

NOT_WEIGHTS = (".rotary_emb.inv_freq", ".attention.masked_bias")
"""Buffers that old versions of transformers saved along."""

TypeChooser = Callable[[Sequence[tuple[str, tuple[int, ...]]]], Sequence[GGMLQuantizationType]]
"""Gives every (name, shape) its ggml type; a mix of types looks at all of them together."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output; `shape` is row-major, `offset` counts from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    rows: Rows

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.rows.n_cols, self.type)

    @property
    def n_bytes(self) -> int:
        return self.rows.n_rows * self.row_bytes


@dataclass(frozen=True)
class Plan:
    """All output tensors in file order, `n_bytes` of data with padding, `n_params` values."""

    tensors: tuple[PlannedTensor, ...]
    n_bytes: int
    n_params: int


def vocabulary_rows(sources: Mapping[str, Rows]) -> int:
    """How many tokens the weights have a row for, which is what counts, whatever config.json says.

    Raises:
        ConversionError: no embedding matrix, or an output head with a different number of rows.
    """
    if EMBEDDING not in sources:
        raise ConversionError(f"the weights have no {EMBEDDING}; the checkpoint is incomplete or of another kind")
    n_rows = sources[EMBEDDING].n_rows
    if HEAD in sources and sources[HEAD].n_rows != n_rows:
        raise ConversionError(
            f"{HEAD} has {sources[HEAD].n_rows} rows, {EMBEDDING} has {n_rows}; "
            "resize both (resize_token_embeddings) and save the model again"
        )
    return n_rows


def make_plan(family: Family, config: Config, sources: Mapping[str, Rows], choose_types: TypeChooser) -> Plan:
    """Lays out the file.

    Args:
        sources: the weights by their Hugging Face names, in the order in which they are best read.

    Raises:
        ConversionError: a weight is missing, unknown, of the wrong shape or of a dtype that cannot be converted.
    """
    named: list[tuple[str, Rows]] = [(name, ConstantRows(values)) for name, values in family.constants(config)]
    named += _named_rows(family, config, sources)
    types = choose_types([(name, rows.shape) for name, rows in named])
    tensors, end = [], 0
    for (name, rows), kind in zip(named, types):
        if len(name.encode()) > MAX_TENSOR_NAME_BYTES:
            raise ConversionError(f"tensor name {shown(name)} is longer than {MAX_TENSOR_NAME_BYTES} bytes")
        tensor = PlannedTensor(name, rows.shape, kind, end, rows)
        tensors.append(tensor)
        end += tensor.n_bytes + padding(tensor.n_bytes)
    return Plan(tuple(tensors), end, sum(math.prod(tensor.shape) for tensor in tensors))


@dataclass(frozen=True)
class _Expected:
    name: str
    shape: tuple[int, ...]
    module: str
    required: bool = True


def _named_rows(family: Family, config: Config, sources: Mapping[str, Rows]) -> list[tuple[str, Rows]]:
    expected = dict(_expected(family, config, vocabulary_rows(sources), sources))
    unknown = [name for name in sources if not (name in expected or name.endswith(NOT_WEIGHTS) or name == HEAD)]
    if unknown:
        raise ConversionError(_unknown_message(unknown, family))
    missing = [name for name, entry in expected.items() if entry.required and name not in sources]
    if missing:
        raise ConversionError(f"{len(missing)} weights are missing, first {missing[0]}; the checkpoint is incomplete")

    named = []
    for source, rows in sources.items():
        if source not in expected:
            continue
        entry = expected[source]
        if rows.shape != entry.shape:
            raise ConversionError(f"{source} has shape {list(rows.shape)}, config.json implies {list(entry.shape)}")
        if rows.dtype not in READABLE:
            raise ConversionError(f"{source} is {rows.dtype}; only {', '.join(READABLE)} weights can be converted")
        named.append((entry.name, _transformed(family, config, entry.module, rows)))
    if family.head == "required" and HEAD not in sources:
        named.append(("output.weight", sources[EMBEDDING]))
    return named


def _expected(
    family: Family, config: Config, n_vocab: int, sources: Mapping[str, Rows]
) -> Iterator[tuple[str, _Expected]]:
    sizes = family.sizes(config, n_vocab)
    tied = family.is_tied(config)
    yield EMBEDDING, _Expected("token_embd.weight", (n_vocab, config.hidden), "embedding")
    yield FINAL_NORM, _Expected("output_norm.weight", (config.hidden,), "norm")
    if family.head == "tied":
        if not tied and HEAD in sources:
            raise config.unsupported(
                f"llama.cpp has no output head of its own for {family.arch}, but this one is not tied"
            )
    else:
        yield HEAD, _Expected("output.weight", (n_vocab, config.hidden), "head", required=not tied)
    for i in range(config.n_layers):
        for module, (name, shape) in family.layer.items():
            dims = tuple(sizes[size] for size in shape)
            weight = f"model.layers.{i}.{module}"
            yield f"{weight}.weight", _Expected(f"blk.{i}.{name}.weight", dims, module)
            if module in family.biases:
                yield f"{weight}.bias", _Expected(f"blk.{i}.{name}.bias", dims[:1], module, required=False)


def _transformed(family: Family, config: Config, module: str, rows: Rows) -> Rows:
    if module in ROTATED and family.permutes_heads:
        return InterleavedRows(rows, config.head_dim)
    if module.endswith("norm") and family.norm_shift:
        return ShiftedRows(rows, family.norm_shift)
    return rows


def _unknown_message(unknown: Sequence[str], family: Family) -> str:
    listed = ", ".join(shown(name) for name in unknown[:3])
    return f"{len(unknown)} weights are not part of a {family.arch} text model: {listed}"
