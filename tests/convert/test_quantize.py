"""NumPy's blocks are ggml's blocks, byte for byte."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import to_stored
from gguf import GGMLQuantizationType as Type

from refusal_edge.convert.native import quantize_rows
from refusal_edge.convert.quantize import encode, row_bytes
from refusal_edge.errors import ConversionError

TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
BLOCKED = TYPES[3:]
COLS = 256


def rows_of(kind: str) -> npt.NDArray[np.float32]:
    """Some rows of float32 that are hard to round."""
    generator = np.random.default_rng(11)
    if kind == "weights":
        return generator.standard_normal((300, COLS), dtype=np.float32) * np.float32(0.02)
    if kind == "halves":  # x / d is exactly n + 0.5 for many n, and just below
        values = generator.integers(-127, 127, (64, COLS)).astype(np.float32) + np.float32(0.5)
        values[:, ::32] = 127
        values[1::2] = np.nextafter(values[1::2], np.float32(0))
        return values
    if kind == "both signs at the edge":
        values = generator.uniform(-1, 1, (64, COLS)).astype(np.float32)
        values[:, 3::32], values[:, 7::32] = 2, -2
        values[::2] *= -1
        return values
    if kind == "zeros":
        values = np.zeros((8, COLS), np.float32)
        values[4:, 5::32] = generator.standard_normal((4, COLS // 32))
        return values
    if kind == "large":
        return generator.uniform(-60000, 60000, (16, COLS)).astype(np.float32)
    return generator.standard_normal((16, COLS)).astype(np.float32) * np.float32(1e-6)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", ["weights", "halves", "both signs at the edge", "zeros", "large", "small"])
@pytest.mark.parametrize("to", TYPES, ids=lambda kind: kind.name)
def test_bytes_equal_ggml(dtype: str, kind: str, to: Type) -> None:
    stored = to_stored(rows_of(kind), dtype)
    values = np.ascontiguousarray(encode(stored, dtype, Type.F32))
    expected = quantize_rows(values, to, row_bytes(COLS, to))
    assert encode(stored, dtype, to).tobytes() == expected.tobytes()


def test_every_bfloat16_becomes_the_nearest_float16() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    fits = bits[np.abs(values) <= 65504]
    for some in (fits, fits[::2], np.concatenate([fits, np.full(10 * len(fits), 0x3F80, np.uint16)])):
        expected = (some.astype(np.uint32) << 16).view(np.float32).astype(np.float16)
        assert encode(some, "BF16", Type.F16).tobytes() == expected.tobytes()


@pytest.mark.parametrize("to", BLOCKED, ids=lambda kind: kind.name)
def test_tile_edges(to: Type) -> None:
    """Blocks are worked on in tiles of 4096: one less, one more."""
    values = np.random.default_rng(12).standard_normal((4097, 32), dtype=np.float32)
    for n in (1, 4095, 4096, 4097):
        assert encode(values[:n], "F32", to).tobytes() == quantize_rows(values[:n], to, row_bytes(32, to)).tobytes()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("to", [*TYPES, Type.Q4_K, Type.Q6_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_refuses_broken_weights(dtype: str, to: Type, bad: float) -> None:
    stored = to_stored(rows_of("weights"), dtype)
    encode(stored, dtype, to)
    stored[17, 33] = to_stored(np.array([bad], np.float32), dtype)[0]
    with pytest.raises(ConversionError, match="NaN or infinite"):
        encode(stored, dtype, to)


def test_refuses_values_that_round_to_infinity() -> None:
    """The largest float32 lies beyond the largest bfloat16."""
    with pytest.raises(ConversionError, match="beyond what this type can hold"):
        encode(np.full((1, 32), np.finfo(np.float32).max, np.float32), "F32", Type.BF16)
    largest = np.full((1, 32), 0xFF7F, np.uint16)
    assert encode(largest, "BF16", Type.BF16).tobytes() == largest.tobytes()


def test_refuses_scales_beyond_float16() -> None:
    with pytest.raises(ConversionError, match="beyond what this type can hold"):
        encode(np.full((1, 32), 1e7, np.float32), "F32", Type.Q8_0)


def test_refuses_values_beyond_float16() -> None:
    values = rows_of("weights")
    values[3, 3] = 70144  # as bfloat16, exactly
    with pytest.raises(ConversionError, match=r"70144 does not fit f16.*bf16"):
        encode(to_stored(values, "BF16"), "BF16", Type.F16)
