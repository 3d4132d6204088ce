"""Which ggml type each tensor gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from .quantize import fits
from .rows import Rows

Shapes = Sequence[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Recipe:
    """One type for all matrices, except for the output head if `head` is given; vectors and norms stay float32."""

    file_type: LlamaFileType
    default: Type
    head: Type | None = None

    def choose(self, tensors: Shapes) -> list[Type]:
        head = head_name(tensors)
        return [self._type(name, shape, is_head=name == head) for name, shape in tensors]

    def _type(self, name: str, shape: tuple[int, ...], *, is_head: bool) -> Type:
        if not is_matrix(name, shape):
            return Type.F32
        wanted = self.head if is_head and self.head is not None else self.default
        return wanted if fits(shape[-1], wanted) else Type.F16


OUTTYPES = {
    "f32": Recipe(LlamaFileType.ALL_F32, Type.F32),
    "f16": Recipe(LlamaFileType.MOSTLY_F16, Type.F16),
    "bf16": Recipe(LlamaFileType.MOSTLY_BF16, Type.BF16),
    "q8_0": Recipe(LlamaFileType.MOSTLY_Q8_0, Type.Q8_0),
    "q5_1": Recipe(LlamaFileType.MOSTLY_Q5_1, Type.Q5_1),
    "q5_0": Recipe(LlamaFileType.MOSTLY_Q5_0, Type.Q5_0),
    "q4_1": Recipe(LlamaFileType.MOSTLY_Q4_1, Type.Q4_1, head=Type.Q8_0),
    "q4_0": Recipe(LlamaFileType.MOSTLY_Q4_0, Type.Q4_0, head=Type.Q8_0),
}


def as_stored(sources: Mapping[str, Rows]) -> str:
    """The `--outtype` that keeps the matrices as they are."""
    for rows in sources.values():
        if len(rows.shape) == 2 and rows.dtype.lower() in OUTTYPES:
            return rows.dtype.lower()
    return "f16"


def head_name(tensors: Shapes) -> str:
    """The matrix that gives the logits: `output.weight`, or the embedding where the two are tied."""
    return "output.weight" if any(name == "output.weight" for name, _ in tensors) else "token_embd.weight"


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp's converter stores the tensor in anything but float32."""
    return len(shape) > 1 and name.endswith(".weight") and not name.endswith("_norm.weight")
