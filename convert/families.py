# ruff: noqa: RUF012 (the tables are class constants, declared as such in Family)
"""The model families that can be converted, one short class each. Adding one touches this file only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from gguf import Keys

from refusal_edge.errors import ConversionError

from .config import FLOAT32_MAX, Config
from .family import ATTENTION, HEAD_NORMS, MLP, NORM, PRE_NORMS, QKV_BIAS, SQUARE_ATTENTION, Family, Head, Module
from .gguf_writer import KeyValue
from .jsonfile import shown
from .rope import scaling_keys
from .rows import Float32Array


class Llama(Family):
    """Llama 1 to 3.3, TinyLlama, SmolLM 1 and 2, Zephyr."""

    arch = "llama"
    classes: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM", "LLaMAForCausalLM")
    defaults = {"max_position_embeddings": 2048}
    biases = QKV_BIAS | {"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    scalings = Family.scalings | {"llama3"}
    permutes_heads = True
    always_key_length = True

    def keys(self, config: Config, n_vocab: int) -> Iterator[KeyValue]:
        yield from super().keys(config, n_vocab)
        yield self.u32(Keys.LLM.VOCAB_SIZE, n_vocab)
        yield self.u32(Keys.Rope.DIMENSION_COUNT, config.head_dim)


class Mistral(Llama):
    """Mistral 7B and Nemo; llama.cpp runs them as Llama, without a sliding window."""

    classes = ("MistralForCausalLM",)
    defaults = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}

    def check(self, config: Config) -> Iterator[str]:
        yield from super().check(config)
        yield from _warn_about_window(config)


class SmolLM3(Llama):
    """SmolLM3: every fourth layer has no rotary embedding, which is fixed in llama.cpp."""

    arch = "smollm3"
    classes = ("SmolLM3ForCausalLM",)
    defaults = {"max_position_embeddings": 32768, "num_key_value_heads": 4}
    biases = QKV_BIAS
    rope_theta = 2_000_000.0
    scalings = Family.scalings
    always_key_length = False
    tied = True

    def check(self, config: Config) -> Iterator[str]:
        yield from super().check(config)
        every_fourth = [int((i + 1) % 4 != 0) for i in range(config.n_layers)]
        if config.first("no_rope_layers", default=every_fourth) != every_fourth:
            raise config.unsupported("no_rope_layers must leave out every fourth layer, as llama.cpp does")
        if config.flag("use_sliding_window"):
            raise config.unsupported("use_sliding_window is not implemented for smollm3 in llama.cpp")


class Granite(Llama):
    """Granite 3 dense models: Llama with four multipliers."""

    arch = "granite"
    classes = ("GraniteForCausalLM",)
    ignored = frozenset({"head_dim"})  # transformers knows none
    defaults = {
        "max_position_embeddings": 2048,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }
    always_key_length = False

    def keys(self, config: Config, n_vocab: int) -> Iterator[KeyValue]:
        yield from super().keys(config, n_vocab)
        yield self.f32(Keys.Attention.SCALE, config.positive("attention_multiplier"))
        yield self.f32(Keys.LLM.EMBEDDING_SCALE, config.positive("embedding_multiplier"))
        yield self.f32(Keys.LLM.RESIDUAL_SCALE, config.positive("residual_multiplier"))
        yield self.f32(Keys.LLM.LOGIT_SCALE, config.positive("logits_scaling"))


class Qwen2(Family):
    """Qwen 1.5, 2 and 2.5 dense models, DeepSeek-R1 distils of them."""

    arch = "qwen2"
    classes = ("Qwen2ForCausalLM",)
    defaults = {"max_position_embeddings": 32768}
    layer = {**PRE_NORMS, **SQUARE_ATTENTION, **MLP}
    biases = QKV_BIAS

    def check(self, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.flag("use_sliding_window"):
            yield from _warn_about_window(config)


class Qwen3(Qwen2):
    """Qwen 3 dense models."""

    arch = "qwen3"
    classes = ("Qwen3ForCausalLM",)
    defaults = {"max_position_embeddings": 32768, "head_dim": 128}
    layer = {**PRE_NORMS, **ATTENTION, **HEAD_NORMS, **MLP}


class Gemma2(Family):
    """Gemma 2: soft-capped logits, sliding windows in every other layer."""

    arch = "gemma2"
    classes = ("Gemma2ForCausalLM",)
    defaults = {
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    layer = {
        "input_layernorm": Module("attn_norm", NORM),
        "post_attention_layernorm": Module("post_attention_norm", NORM),
        "pre_feedforward_layernorm": Module("ffn_norm", NORM),
        "post_feedforward_layernorm": Module("post_ffw_norm", NORM),
        **ATTENTION,
        **MLP,
    }
    activation = ("hidden_activation", ("gelu_pytorch_tanh",))
    norm_shift = 1.0
    tied = True
    head: ClassVar[Head] = "tied"
    window_period = 2
    layers_of_27b = 46

    def check(self, config: Config) -> Iterator[str]:
        yield from super().check(config)
        fixed = config.head_dim if config.n_layers != self.layers_of_27b else config.hidden // config.n_heads
        if config.number("query_pre_attn_scalar") != fixed:
            raise config.unsupported(f"query_pre_attn_scalar must be {fixed}, which is fixed in llama.cpp")
        if config.flag("use_bidirectional_attention"):
            raise config.unsupported("use_bidirectional_attention makes it no causal language model")
        period = self.window_period
        windows = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(config.n_layers)]
        if config.first("layer_types", default=windows) != windows:
            raise config.unsupported(f"layer_types must be full attention in every {period}th layer, as in llama.cpp")

    def rope_keys(self, config: Config) -> Iterator[KeyValue]:
        rope = self.rope(config)
        yield from scaling_keys(rope, self.arch)
        if rope.theta != self.rope_theta:  # llama.cpp's converter never writes it, its loader assumes 10000
            yield self.f32(Keys.Rope.FREQ_BASE, rope.theta)

    def keys(self, config: Config, n_vocab: int) -> Iterator[KeyValue]:
        yield from super().keys(config, n_vocab)
        yield self.f32(Keys.LLM.ATTN_LOGIT_SOFTCAPPING, config.positive("attn_logit_softcapping"))
        yield self.f32(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, config.positive("final_logit_softcapping"))
        yield self.u32(Keys.Attention.SLIDING_WINDOW, config.count("sliding_window"))


class Gemma3(Gemma2):
    """Gemma 3, the text models: norms on queries and keys, two rotary bases, full attention in every sixth layer."""

    arch = "gemma3"
    classes = ("Gemma3ForCausalLM",)
    defaults = {
        "max_position_embeddings": 131072,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    }
    layer = {**Gemma2.layer, **HEAD_NORMS}
    rope_theta = 1_000_000.0
    local_rope_theta = 10_000.0
    head = "optional"
    window_period = 6
    layers_of_27b = 62

    def check(self, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.get("attn_logit_softcapping") is not None:
            raise config.unsupported("attn_logit_softcapping is not implemented for gemma3 in llama.cpp")
        if config.first("sliding_window_pattern", default=self.window_period) != self.window_period:
            raise config.unsupported(f"sliding_window_pattern must be {self.window_period}, as in llama.cpp")

    def rope_keys(self, config: Config) -> Iterator[KeyValue]:
        return Family.rope_keys(self, config)

    def keys(self, config: Config, n_vocab: int) -> Iterator[KeyValue]:
        yield from Family.keys(self, config, n_vocab)
        if config.get("final_logit_softcapping") is not None:
            yield self.f32(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, config.positive("final_logit_softcapping"))
        yield self.u32(Keys.Attention.SLIDING_WINDOW, config.count("sliding_window"))


class Phi3(Family):
    """Phi 3, 3.5, 4 and Phi-4-mini: fused projections, two sets of rotary factors for long contexts."""

    arch = "phi3"
    classes = ("Phi3ForCausalLM",)
    defaults = {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    ignored = frozenset({"head_dim"})
    layer = {
        **PRE_NORMS,
        "self_attn.qkv_proj": Module("attn_qkv", ("queries+2keys", "hidden")),
        "self_attn.o_proj": Module("attn_output", ("hidden", "hidden")),
        "mlp.gate_up_proj": Module("ffn_up", ("2ffn", "hidden")),
        "mlp.down_proj": Module("ffn_down", ("hidden", "ffn")),
    }
    scalings = frozenset({"default", "longrope", "su"})
    partial_rotary = True
    had_remote_code = True

    def check(self, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if self._rotary_dim(config) < 2 or self._rotary_dim(config) % 2:
            raise self.rope(config).broken("partial_rotary_factor", f"an even part of {config.head_dim} values")
        if config.count("original_max_position_embeddings") < 2:  # its logarithm divides
            raise config.broken("original_max_position_embeddings", "an integer above 1")

    def keys(self, config: Config, n_vocab: int) -> Iterator[KeyValue]:
        yield from super().keys(config, n_vocab)
        # 0 tells Phi-4 from the others; llama.cpp does not run a window for any of them.
        window = 0 if config.get("sliding_window") is None else config.count("sliding_window")
        yield self.u32(Keys.Attention.SLIDING_WINDOW, window)

    def rope_keys(self, config: Config) -> Iterator[KeyValue]:
        rope, pretrained = self.rope(config), config.count("original_max_position_embeddings")
        yield self.u32(Keys.Rope.SCALING_ORIG_CTX_LEN, pretrained)
        yield self.u32(Keys.Rope.DIMENSION_COUNT, self._rotary_dim(config))
        yield self.f32(Keys.Rope.FREQ_BASE, rope.theta)
        if rope.kind != "default":
            stretch = config.count("max_position_embeddings") / pretrained
            attention_factor = math.sqrt(1 + math.log(stretch) / math.log(pretrained)) if stretch > 1 else 1.0
            yield self.f32(Keys.Rope.SCALING_ATTN_FACTOR, rope.positive("attention_factor", attention_factor))

    def constants(self, config: Config) -> Iterator[tuple[str, Float32Array]]:
        rope = self.rope(config)
        if rope.kind == "default":
            return
        for kind in ("long", "short"):
            factors: Any = rope.values.get(f"{kind}_factor")
            n_factors = self._rotary_dim(config) // 2
            if not _is_list_of_factors(factors) or len(factors) != n_factors:
                raise rope.broken(f"{kind}_factor", f"a list of {n_factors} numbers above 0")
            yield f"rope_factors_{kind}.weight", np.array(factors, dtype=np.float32)

    def _rotary_dim(self, config: Config) -> int:
        return int(self.rope(config).partial_rotary_factor * config.hidden) // config.n_heads


class Olmo2(Family):
    """OLMo 2: norms after attention and feed-forward, and over whole queries and keys."""

    arch = "olmo2"
    classes = ("Olmo2ForCausalLM",)
    defaults = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
    layer = {
        "post_attention_layernorm": Module("post_attention_norm", NORM),
        "post_feedforward_layernorm": Module("post_ffw_norm", NORM),
        **SQUARE_ATTENTION,
        **MLP,
        "self_attn.q_norm": Module("attn_q_norm", ("hidden",)),
        "self_attn.k_norm": Module("attn_k_norm", ("keys",)),
    }
    head = "required"


FAMILIES: tuple[Family, ...] = (
    Llama(),
    Mistral(),
    SmolLM3(),
    Granite(),
    Qwen2(),
    Qwen3(),
    Gemma2(),
    Gemma3(),
    Phi3(),
    Olmo2(),
)


def find_family(architecture: str) -> Family:
    """The family of a Hugging Face class name.

    Raises:
        ConversionError: no such family; the message lists those there are.
    """
    for family in FAMILIES:
        if architecture in family.classes:
            return family
    known = ", ".join(family.classes[0] for family in FAMILIES)
    has_experts = "moe" in architecture.lower() or "Mixtral" in architecture
    reason = " (mixtures of experts are out of scope)" if has_experts else ""
    raise ConversionError(f"architecture {shown(architecture)} is not supported{reason}; supported are {known}")


def _warn_about_window(config: Config) -> Iterator[str]:
    window = config.get("sliding_window")
    if isinstance(window, int) and window < config.count("max_position_embeddings"):
        yield f"llama.cpp attends to the whole context, the model was trained with a sliding window of {window} tokens"


def _is_list_of_factors(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) in (int, float) and 0 < n <= FLOAT32_MAX for n in value)
