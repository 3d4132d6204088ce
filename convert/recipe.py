"""`--outtype`, `--quantize` and `--head`: which types the user asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from refusal_edge.errors import ConversionError

from .config import Config
from .jsonfile import shown
from .mix import MIXES, NEED_IMPORTANCE, MixRecipe, model_facts
from .types import OUTTYPES, Shapes

HEAD_TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")


class TypeRecipe(Protocol):
    """The type of the file as llama.cpp names it, and of every tensor in it."""

    @property
    def file_type(self) -> LlamaFileType: ...
    def choose(self, tensors: Shapes) -> list[Type]: ...


def parse_recipe(
    outtype: str | None, quantize: str | None, head: str | None, config: Config, arch: str, stored: str = "f16"
) -> TypeRecipe:
    """One type for all matrices (`outtype`, else `stored`) or a mix (`quantize`), with `head` for the output head.

    Raises:
        ConversionError: an unknown name, a type and a mix, or a mix that needs an importance matrix.
    """
    if outtype is not None and quantize is not None:
        raise ConversionError(
            f"--outtype {shown(outtype)} and --quantize {shown(quantize)} exclude each other: give one"
        )
    head_type = None if head is None else Type[_known("--head", head, HEAD_TYPES).upper()]
    if quantize is not None:
        if quantize.upper() in NEED_IMPORTANCE:
            raise ConversionError(f"--quantize {quantize} needs an importance matrix; convert, then use llama-quantize")
        mix = MIXES[_known("--quantize", quantize.upper(), tuple(MIXES))]
        return MixRecipe(mix, model_facts(config, arch), head_type or mix.head)
    recipe = OUTTYPES[_known("--outtype", (outtype or stored).lower(), tuple(OUTTYPES))]
    return recipe if head_type is None else replace(recipe, head=head_type)


def _known(option: str, value: str, allowed: tuple[str, ...]) -> str:
    for name in allowed:
        if value.lower() == name.lower():
            return name
    raise ConversionError(f"{option} {shown(value)}: allowed are {', '.join(allowed)}")
