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

from refusal_edge.errors import FormatError

from .config import POSITIVE, Config, finite, positive
from .gguf_writer import KeyValue
from .jsonfile import shown
from .rows import Float32Array

LOCAL_THETA = "rope_local_base_freq"
PRETRAINED = "original_max_position_embeddings"
YARN_VALUES = {
    *("rope_type", "type", "rope_theta", LOCAL_THETA, "partial_rotary_factor", "factor", PRETRAINED),
    *("extrapolation_factor", "attention_factor", "beta_fast", "beta_slow"),
}


@dataclass(frozen=True)
class Rope:
    """One rotary embedding: the name of its scaling, and its values.

    `place` is the object in config.json that holds the values; `places` names those that stand elsewhere.
    """

    kind: str
    values: Mapping[str, Any]
    config: Config
    place: str
    places: Mapping[str, str]

    @property
    def theta(self) -> float:
        """The base frequency."""
        return self.positive("rope_theta")

    @property
    def local_theta(self) -> float | None:
        """That of the layers with a sliding window, if they have one of their own."""
        return None if self.values.get(LOCAL_THETA) is None else self.positive(LOCAL_THETA)

    @property
    def partial_rotary_factor(self) -> float:
        """The part of each head that is rotated."""
        factor = self.positive("partial_rotary_factor")
        if factor > 1:
            raise self.broken("partial_rotary_factor", "a number in (0, 1]")
        return factor

    def number(self, key: str) -> float:
        return finite(self.values.get(key), lambda: self.broken(key, "a finite number"))

    def positive(self, key: str, default: float | None = None) -> float:
        value = default if self.values.get(key) is None else self.values[key]
        return positive(value, lambda: self.broken(key, POSITIVE))

    def broken(self, key: str, expected: str) -> FormatError:
        """The error for a value that is not what was `expected`."""
        return self.config.broken_value(self.places.get(key, f"{self.place}.{key}"), expected, self.values.get(key))


def read_rope(config: Config, default_theta: float = 10_000.0, default_local_theta: float | None = None) -> Rope:
    """The rotary embedding of the full-attention layers, plus the base frequency of the local ones if they differ.

    Raises:
        FormatError: what should be an object is none.
        ConversionError: the local layers have a scaling of their own.
    """
    place = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    found = config.first(place, default={})
    if not isinstance(found, dict):
        raise config.broken(place, "an object")
    local, local_place = found.get("sliding_attention") or {}, f"{place}.sliding_attention"
    if "full_attention" in found:
        found, place = found["full_attention"], f"{place}.full_attention"
    for value, name in ((found, place), (local, local_place)):
        if not isinstance(value, dict):
            raise config.broken_value(name, "an object", value)
    kind = found.get("rope_type") or found.get("type") or "default"
    if not isinstance(kind, str):
        raise config.broken_value(f"{place}.rope_type", "a string", kind)
    if local.get("rope_type", "default") != "default":
        raise config.unsupported("rope scaling of the sliding-window layers is not implemented in llama.cpp")

    values = {**found, LOCAL_THETA: local.get("rope_theta")}
    places = {LOCAL_THETA: f"{local_place}.rope_theta"}

    def look_above(key: str, *names: str, default: float | None = None) -> None:
        """Takes a value that the object does not have from one of the `names` at the top of config.json."""
        if values.get(key) is None:
            places[key] = next((name for name in names if config.get(name) is not None), names[0])
            values[key] = config.first(places[key], default=default)

    look_above("rope_theta", "rope_theta", default=default_theta)
    look_above(LOCAL_THETA, LOCAL_THETA, default=default_local_theta)
    look_above("partial_rotary_factor", "partial_rotary_factor", default=1.0)
    if kind.lower() in ("llama3", "yarn", "longrope", "su"):
        if config.get(PRETRAINED) is not None:
            values[PRETRAINED] = None  # the one at the top wins
        look_above(PRETRAINED, PRETRAINED, "max_position_embeddings")
    return Rope(kind.lower(), values, config, place, places)


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
        pretrained = int(rope.positive(PRETRAINED))
        yield KeyValue(key.SCALING_ORIG_CTX_LEN.format(arch=arch), pretrained, GGUFValueType.UINT32)
        for name, template in (
            ("extrapolation_factor", key.SCALING_YARN_EXT_FACTOR),
            ("attention_factor", key.SCALING_YARN_ATTN_FACTOR),
            ("beta_fast", key.SCALING_YARN_BETA_FAST),
            ("beta_slow", key.SCALING_YARN_BETA_SLOW),
        ):
            if rope.values.get(name) is not None:
                number = rope.number(name) if name == "extrapolation_factor" else rope.positive(name)
                yield KeyValue(template.format(arch=arch), number, GGUFValueType.FLOAT32)


def llama3_factors(rope: Rope, head_dim: int) -> Float32Array:
    """`rope_freqs`: per frequency, what to divide it by, shape (head_dim / 2,).

    Low frequencies are slowed down by `factor`, high ones are left alone, with a smooth band between (Llama 3.1).
    """
    factor, low, high = (
        rope.positive("factor", 8.0),
        rope.positive("low_freq_factor", 1.0),
        rope.positive("high_freq_factor", 4.0),
    )
    pretrained = rope.positive(PRETRAINED, 8192)
    if low >= high:
        raise rope.broken("low_freq_factor", f"below high_freq_factor ({high:g})")
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
