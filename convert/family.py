"""What every model family shares: a decoder of identical layers, described by a table.

A family is one short class in `families.py`. It names its tensors and their shapes, the keys llama.cpp reads, and what
llama.cpp would compute wrongly, so that such a model is refused here instead of answering nonsense later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from gguf import GGUFValueType, Keys

from .config import Config
from .gguf_writer import KeyValue
from .jsonfile import shown
from .rope import Rope, llama3_factors, read_rope, scaling_keys
from .rows import Float32Array

Head = Literal["optional", "tied", "required"]


class Module(NamedTuple):
    """One weight of a layer: its GGUF name and its row-major shape in named sizes."""

    name: str
    shape: tuple[str, ...]


NORM = ("hidden",)

ATTENTION = {
    "self_attn.q_proj": Module("attn_q", ("queries", "hidden")),
    "self_attn.k_proj": Module("attn_k", ("keys", "hidden")),
    "self_attn.v_proj": Module("attn_v", ("keys", "hidden")),
    "self_attn.o_proj": Module("attn_output", ("hidden", "queries")),
}
SQUARE_ATTENTION = {  # where llama.cpp takes heads times head size to be the hidden size
    **ATTENTION,
    "self_attn.q_proj": Module("attn_q", ("hidden", "hidden")),
    "self_attn.o_proj": Module("attn_output", ("hidden", "hidden")),
}
MLP = {
    "mlp.gate_proj": Module("ffn_gate", ("ffn", "hidden")),
    "mlp.up_proj": Module("ffn_up", ("ffn", "hidden")),
    "mlp.down_proj": Module("ffn_down", ("hidden", "ffn")),
}
PRE_NORMS = {
    "input_layernorm": Module("attn_norm", NORM),
    "post_attention_layernorm": Module("ffn_norm", NORM),
}
HEAD_NORMS = {
    "self_attn.q_norm": Module("attn_q_norm", ("head",)),
    "self_attn.k_norm": Module("attn_k_norm", ("head",)),
}
ROTATED = frozenset({"self_attn.q_proj", "self_attn.k_proj"})
QKV_BIAS = ROTATED | {"self_attn.v_proj"}


class Family:
    """The base of all families: a Llama-like decoder with nothing special."""

    arch: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Mapping[str, Any]] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()
    layer: ClassVar[Mapping[str, Module]] = {**PRE_NORMS, **ATTENTION, **MLP}
    biases: ClassVar[frozenset[str]] = frozenset()
    activation: ClassVar[tuple[str, tuple[str, ...]]] = ("hidden_act", ("silu", "swish"))
    rope_theta: ClassVar[float] = 10_000.0
    local_rope_theta: ClassVar[float | None] = None
    scalings: ClassVar[frozenset[str]] = frozenset({"default", "linear", "yarn"})
    partial_rotary: ClassVar[bool] = False

    had_remote_code: ClassVar[bool] = False
    """Checkpoints from before transformers knew the family still point to code that it no longer needs."""
    permutes_heads: ClassVar[bool] = False
    """llama.cpp rotates neighbouring pairs (2i, 2i+1) in this architecture, transformers halves (i, i + d/2)."""
    norm_shift: ClassVar[float] = 0.0
    """Added to every norm weight; Gemma's norms multiply by 1 + w."""
    tied: ClassVar[bool] = False
    """What a missing `tie_word_embeddings` means."""
    head: ClassVar[Head] = "optional"
    """Whether llama.cpp reads `output.weight`: if it is there, never, or always."""
    always_key_length: ClassVar[bool] = False

    def read_config(self, values: Mapping[str, Any], source: str) -> Config:
        """`values` with this family's defaults filled in."""
        kept = {key: value for key, value in values.items() if key not in self.ignored}
        return Config(kept, {"rms_norm_eps": 1e-6, self.activation[0]: self.activation[1][0], **self.defaults}, source)

    def rope(self, config: Config) -> Rope:
        return read_rope(config, self.rope_theta, self.local_rope_theta)

    def sizes(self, config: Config, n_vocab: int) -> dict[str, int]:
        """The named sizes that `Module.shape` is made of."""
        ffn, queries, keys = (
            config.count("intermediate_size"),
            config.n_heads * config.head_dim,
            config.n_kv_heads * config.head_dim,
        )
        return {
            "hidden": config.hidden,
            "ffn": ffn,
            "queries": queries,
            "keys": keys,
            "head": config.head_dim,
            "queries+2keys": queries + 2 * keys,
            "2ffn": 2 * ffn,
            "vocab": n_vocab,
        }

    def is_tied(self, config: Config) -> bool:
        """Whether the output head is the embedding matrix."""
        return bool(config.flag("tie_word_embeddings") if "tie_word_embeddings" in config else self.tied)

    def check(self, config: Config) -> Iterator[str]:
        """Yields warnings about what llama.cpp computes differently beyond some limit.

        Raises:
            ConversionError: llama.cpp would compute something else altogether.
        """
        key, allowed = self.activation
        if config[key] not in allowed:
            raise config.unsupported(f"{key} {shown(config[key])} is not implemented for {self.arch} ({allowed[0]})")
        if config.n_heads % config.n_kv_heads:
            raise config.broken("num_key_value_heads", f"a divisor of num_attention_heads ({config.n_heads})")
        if config.head_dim % 2:
            raise config.broken("head_dim", "even")
        if config.number("rms_norm_eps") < 0:
            raise config.broken("rms_norm_eps", "a number of at least 0")
        rope = self.rope(config)
        if rope.kind == "dynamic":
            yield "rope scaling 'dynamic' is left out; it only acts beyond max_position_embeddings"
        elif rope.kind not in self.scalings:
            known = ", ".join(sorted(self.scalings))
            raise config.unsupported(f"rope scaling {shown(rope.kind)} is not implemented for {self.arch} ({known})")
        if not self.partial_rotary and rope.partial_rotary_factor != 1:
            raise config.unsupported(f"a partial_rotary_factor other than 1 is not implemented for {self.arch}")

    def keys(self, config: Config, n_vocab: int) -> Iterator[KeyValue]:
        """The `<arch>.*` metadata."""
        yield self.u32(Keys.LLM.BLOCK_COUNT, config.n_layers)
        yield self.u32(Keys.LLM.CONTEXT_LENGTH, config.count("max_position_embeddings"))
        yield self.u32(Keys.LLM.EMBEDDING_LENGTH, config.hidden)
        yield self.u32(Keys.LLM.FEED_FORWARD_LENGTH, config.count("intermediate_size"))
        yield self.u32(Keys.Attention.HEAD_COUNT, config.n_heads)
        yield self.u32(Keys.Attention.HEAD_COUNT_KV, config.n_kv_heads)
        yield from self.rope_keys(config)
        yield self.f32(Keys.Attention.LAYERNORM_RMS_EPS, config.number("rms_norm_eps"))
        if self.always_key_length or config.get("head_dim") is not None:
            yield self.u32(Keys.Attention.KEY_LENGTH, config.head_dim)
            yield self.u32(Keys.Attention.VALUE_LENGTH, config.head_dim)

    def rope_keys(self, config: Config) -> Iterator[KeyValue]:
        rope = self.rope(config)
        yield from scaling_keys(rope, self.arch)
        yield self.f32(Keys.Rope.FREQ_BASE, rope.theta)
        if rope.local_theta is not None:
            yield self.f32(Keys.Rope.FREQ_BASE_SWA, rope.local_theta)

    def constants(self, config: Config) -> Iterator[tuple[str, Float32Array]]:
        """Tensors that come from the configuration instead of the weights."""
        rope = self.rope(config)
        if rope.kind == "llama3":
            yield "rope_freqs.weight", llama3_factors(rope, config.head_dim)

    def u32(self, key: str, value: int) -> KeyValue:
        return KeyValue(key.format(arch=self.arch), value, GGUFValueType.UINT32)

    def f32(self, key: str, value: float) -> KeyValue:
        return KeyValue(key.format(arch=self.arch), float(np.float32(value)), GGUFValueType.FLOAT32)
