"""Rotary position embeddings: from transformers' configuration to llama.cpp's keys and factor tensors.

Transformers wrote `rope_theta` and `rope_scaling` until version 5 and one `rope_parameters` object since then, nested
by layer type where a model has two kinds of attention. Both forms end up in the same `Rope`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType, Keys, RopeScalingType

from .config import Config, finite
from .gguf_writer import KeyValue
from .jsonfile import shown
from .rows import Float32Array

YARN_VALUES = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"),
    *("extrapolation_factor", "attention_factor", "beta_fast", "beta_slow"),
}


@dataclass(frozen=True)
class Rope:
    """One rotary embedding: its base frequency, the name of its scaling, and that scaling's own values."""

    theta: float
    kind: str
    values: Mapping[str, Any]
    local_theta: float | None
    config: Config

    @property
    def partial_rotary_factor(self) -> float:
        """The part of each head that is rotated."""
        return self.number("partial_rotary_factor", self.config.first("partial_rotary_factor", default=1.0))

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.values.get(key) is None else self.values[key]
        return finite(value, lambda: self.config.broken("rope_parameters", f"an object whose {key} is a finite number"))

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise self.config.broken("rope_parameters", f"an object whose {key} is positive")
        return value


def read_rope(config: Config, default_theta: float = 10_000.0, default_local_theta: float | None = None) -> Rope:
    """The rotary embedding of the full-attention layers, plus the base frequency of the local ones if they differ.

    Raises:
        FormatError: a value of the wrong type.
    """
    nested = config.first("rope_parameters", "rope_scaling", default={})
    if not isinstance(nested, dict):
        raise config.broken("rope_parameters" if config.get("rope_parameters") else "rope_scaling", "an object")
    values, local = nested.get("full_attention", nested), nested.get("sliding_attention") or {}
    if not isinstance(values, dict) or not isinstance(local, dict):
        raise config.broken("rope_parameters", "an object of objects")

    kind = values.get("rope_type") or values.get("type") or "default"
    if not isinstance(kind, str):
        raise config.broken("rope_parameters", "an object whose rope_type is a string")
    if local.get("rope_type", "default") != "default":
        raise config.unsupported("rope scaling of the sliding-window layers is not implemented in llama.cpp")
    if kind.lower() in ("llama3", "yarn", "longrope", "su"):
        pretrained = values.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        pretrained = config.first("original_max_position_embeddings", default=pretrained)
        values = {**values, "original_max_position_embeddings": pretrained}

    def theta(given: Any, *keys: str, default: float | None) -> Any:
        value = config.first(*keys, default=default) if given is None else given
        return value if value is None else finite(value, lambda: config.broken(keys[0], "a finite number"))

    return Rope(
        theta=theta(values.get("rope_theta"), "rope_theta", default=default_theta),
        local_theta=theta(local.get("rope_theta"), "rope_local_base_freq", default=default_local_theta),
        kind=kind.lower(),
        values=values,
        config=config,
    )


def scaling_keys(rope: Rope, arch: str) -> Iterator[KeyValue]:
    """`<arch>.rope.scaling.*` as llama.cpp's own converter writes it; Llama 3's scaling is a tensor and has no key.

    Raises:
        ConversionError: a variant of yarn that llama.cpp does not compute.
    """
    key = Keys.Rope
    if rope.kind == "linear":
        yield KeyValue(key.SCALING_TYPE.format(arch=arch), RopeScalingType.LINEAR.value, GGUFValueType.STRING)
        yield KeyValue(key.SCALING_FACTOR.format(arch=arch), rope.positive("factor"), GGUFValueType.FLOAT32)
    elif rope.kind == "yarn":
        extra = [name for name, value in rope.values.items() if name not in YARN_VALUES and value is not None]
        if extra:
            raise rope.config.unsupported(f"yarn with {shown(extra[0])} is not implemented in llama.cpp")
        yield KeyValue(key.SCALING_TYPE.format(arch=arch), RopeScalingType.YARN.value, GGUFValueType.STRING)
        yield KeyValue(key.SCALING_FACTOR.format(arch=arch), rope.positive("factor"), GGUFValueType.FLOAT32)
        pretrained = int(rope.positive("original_max_position_embeddings"))
        yield KeyValue(key.SCALING_ORIG_CTX_LEN.format(arch=arch), pretrained, GGUFValueType.UINT32)
        for name, template in (
            ("extrapolation_factor", key.SCALING_YARN_EXT_FACTOR),
            ("attention_factor", key.SCALING_YARN_ATTN_FACTOR),
            ("beta_fast", key.SCALING_YARN_BETA_FAST),
            ("beta_slow", key.SCALING_YARN_BETA_SLOW),
        ):
            if rope.values.get(name) is not None:
                yield KeyValue(template.format(arch=arch), rope.number(name), GGUFValueType.FLOAT32)


def llama3_factors(rope: Rope, head_dim: int) -> Float32Array:
    """`rope_freqs`: per frequency, what to divide it by, shape (head_dim / 2,).

    Low frequencies are slowed down by `factor`, high ones are left alone, with a smooth band between (Llama 3.1).
    """
    factor, low, high = (
        rope.positive("factor", 8.0),
        rope.positive("low_freq_factor", 1.0),
        rope.positive("high_freq_factor", 4.0),
    )
    pretrained = rope.positive("original_max_position_embeddings", 8192)
    if low >= high:
        raise rope.config.broken("rope_parameters", "an object with low_freq_factor < high_freq_factor")
    # Float32, operation by operation as in the converter whose bytes these must equal; but for the power, which in
    # NumPy's float32 varies with the processor. Torch divides by taking the reciprocal first.
    one, exponents = np.float32(1), np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = one / (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
    wavelengths = one / frequencies * np.float32(2 * math.pi)
    turns = one / wavelengths * np.float32(pretrained)  # within the pretrained context
    smooth = (turns - np.float32(low)) / np.float32(high - low)
    with np.errstate(divide="ignore"):
        blended = one / ((one - smooth) / np.float32(factor) + smooth)
    is_high, is_low = wavelengths < np.float32(pretrained / high), wavelengths > np.float32(pretrained / low)
    factors: Float32Array = np.where(is_high, one, np.where(is_low, np.float32(factor), blended)).astype(np.float32)
    return factors
