"""The mixes of block types that llama.cpp calls Q4_K_M and the like: better types where it hurts most.

Which tensor gets which type is a rule of `llama_model_quantize`, written down here for dense models without an
importance matrix, so that weights can go from the checkpoint into the final file without a second file between.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType

from .config import Config
from .quantize import fits
from .types import Shapes, head_name, is_matrix

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_FALLBACK = {
    Type.Q2_K: Type.Q4_0,
    Type.Q3_K: Type.Q4_0,
    Type.IQ3_S: Type.IQ4_NL,
    Type.IQ4_XS: Type.IQ4_NL,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}
"""For rows that are not whole blocks of 256 values."""


@dataclass(frozen=True)
class Model:
    """What the rules ask of a model."""

    n_layers: int
    n_gqa: int
    shares_values_widely: bool
    """Eight query heads on one value head, as in the 70B models: cheap to keep precise."""


Rule = Callable[[int, Model], Type | None]
"""The type of a tensor in layer i, or None for the mix's default."""


def always(kind: Type) -> Rule:
    return lambda i, model: kind


def first(n: int, kind: Type, otherwise: Type | None = None) -> Rule:
    """In the first `n` layers."""
    return lambda i, model: kind if i < n else otherwise


def first_part(divisor: int, kind: Type, otherwise: Type | None = None) -> Rule:
    """In the first 1/`divisor` of the layers."""
    return lambda i, model: kind if i < model.n_layers // divisor else otherwise


def outer_and_every_third(kind: Type) -> Rule:
    """In the first and last eighth of the layers, and in every third between."""

    def rule(i: int, model: Model) -> Type | None:
        eighth = model.n_layers // 8
        is_chosen = i < eighth or i >= 7 * model.n_layers // 8 or (i - eighth) % 3 == 2
        return kind if is_chosen else None

    return rule


def if_values_are_shared(kind: Type, otherwise: Type | None = None) -> Rule:
    """Where at least four query heads use one value head."""
    return lambda i, model: kind if model.n_gqa >= 4 else otherwise


@dataclass(frozen=True)
class Mix:
    """A default type, the tensors that get another one, and the type of the output head.

    llama.cpp gives the head Q6_K in all of these. Below five bits we give it Q8_0: the control tokens' rows are in it.
    """

    file_type: LlamaFileType
    default: Type
    rules: dict[str, Rule] = field(default_factory=dict)
    head: Type = Type.Q8_0


File = LlamaFileType
MIXES = {
    "Q2_K": Mix(
        File.MOSTLY_Q2_K,
        Type.Q2_K,
        {
            "attn_v": if_values_are_shared(Type.Q4_K, otherwise=Type.Q3_K),
            "attn_output": always(Type.Q3_K),
            "ffn_down": always(Type.Q3_K),
        },
    ),
    "Q3_K_S": Mix(File.MOSTLY_Q3_K_S, Type.Q3_K),
    "Q3_K_M": Mix(
        File.MOSTLY_Q3_K_M,
        Type.Q3_K,
        {
            "attn_v": first(2, Type.Q5_K, otherwise=Type.Q4_K),
            "attn_output": always(Type.Q4_K),
            "ffn_down": first_part(16, Type.Q5_K, otherwise=Type.Q4_K),
        },
    ),
    "Q3_K_L": Mix(
        File.MOSTLY_Q3_K_L,
        Type.Q3_K,
        {"attn_v": always(Type.Q5_K), "attn_output": always(Type.Q5_K), "ffn_down": always(Type.Q5_K)},
    ),
    "IQ3_S": Mix(File.MOSTLY_IQ3_S, Type.IQ3_S, {"attn_v": if_values_are_shared(Type.Q4_K)}),
    "IQ3_M": Mix(
        File.MOSTLY_IQ3_M,
        Type.IQ3_S,
        {"attn_v": always(Type.Q4_K), "attn_output": always(Type.Q4_K), "ffn_down": first_part(8, Type.Q4_K)},
    ),
    "IQ4_XS": Mix(
        File.MOSTLY_IQ4_XS,
        Type.IQ4_XS,
        {"attn_v": if_values_are_shared(Type.Q5_K), "ffn_down": first_part(8, Type.Q5_K)},
    ),
    "IQ4_NL": Mix(
        File.MOSTLY_IQ4_NL,
        Type.IQ4_NL,
        {"attn_v": if_values_are_shared(Type.Q5_K), "ffn_down": first_part(8, Type.Q5_K)},
    ),
    "Q4_K_S": Mix(File.MOSTLY_Q4_K_S, Type.Q4_K, {"attn_v": first(4, Type.Q5_K), "ffn_down": first_part(8, Type.Q5_K)}),
    "Q4_K_M": Mix(
        File.MOSTLY_Q4_K_M,
        Type.Q4_K,
        {"attn_v": outer_and_every_third(Type.Q6_K), "ffn_down": outer_and_every_third(Type.Q6_K)},
    ),
    "Q5_K_S": Mix(File.MOSTLY_Q5_K_S, Type.Q5_K, head=Type.Q6_K),
    "Q5_K_M": Mix(
        File.MOSTLY_Q5_K_M,
        Type.Q5_K,
        {"attn_v": outer_and_every_third(Type.Q6_K), "ffn_down": outer_and_every_third(Type.Q6_K)},
        head=Type.Q6_K,
    ),
    "Q6_K": Mix(File.MOSTLY_Q6_K, Type.Q6_K, head=Type.Q6_K),
}
NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"})


@dataclass(frozen=True)
class MixRecipe:
    """A mix for one model; `head` is the type of the output head."""

    mix: Mix
    model: Model
    head: Type

    @property
    def file_type(self) -> LlamaFileType:
        return self.mix.file_type

    def choose(self, tensors: Shapes) -> list[Type]:
        head = head_name(tensors)
        return [self._type(name, shape, is_head=name == head) for name, shape in tensors]

    def _type(self, name: str, shape: tuple[int, ...], *, is_head: bool) -> Type:
        if not is_matrix(name, shape):
            return Type.F32
        wanted = self.head if is_head else self._in_layer(name)
        for kind in (wanted, _FALLBACK.get(wanted, wanted)):
            if fits(shape[-1], kind):
                return kind
        return Type.F16

    def _in_layer(self, name: str) -> Type:
        in_layer = _LAYER.fullmatch(name)
        if in_layer is None:
            return self.mix.default
        module = in_layer[2].replace("attn_qkv", "attn_v")  # fused, it is as sensitive as its values
        rule = self.mix.rules.get(module)
        kind = (rule and rule(int(in_layer[1]), self.model)) or self.mix.default
        if module == "attn_v" and self.model.shares_values_widely and kind in (Type.Q3_K, Type.Q4_K):
            return Type.Q5_K
        return kind


def model_facts(config: Config, arch: str) -> Model:
    """What the rules ask, from the configuration."""
    grouped = config.n_heads != config.n_kv_heads
    return Model(
        n_layers=config.n_layers,
        n_gqa=config.n_heads // config.n_kv_heads,
        shares_values_widely=config.n_layers == 80 and (arch == "qwen2" or (arch == "llama" and grouped)),
    )
