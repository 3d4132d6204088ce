"""Rows of weights in the block formats of ggml, byte for byte what ggml itself writes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Type

from refusal_edge.errors import ConversionError

from .native import quantize_rows
from .rows import Array, Float32Array, to_float32

Bytes = npt.NDArray[np.uint8]

SAME_BYTES = {"F32": Type.F32, "F16": Type.F16, "BF16": Type.BF16}

_Q8_0_BLOCK, _Q8_0_TILE = 32, 4096  # blocks that stay in the second-level cache together
_INFINITY = {Type.F32: ("<u4", 0x7F80_0000), Type.F16: ("<u2", 0x7C00), Type.BF16: ("<u2", 0x7F80)}
_BROKEN = "a weight is NaN or infinite, or beyond what this type can hold; the checkpoint is broken"
_SIGN_BIT = np.uint32(0x8000_0000)
_ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0)).view(np.uint32)


def row_bytes(n_cols: int, kind: Type) -> int:
    """Size of one row of `n_cols` values; `n_cols` must be whole blocks."""
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    return int(n_cols // block_values * block_bytes)


def fits(n_cols: int, kind: Type) -> bool:
    """Whether rows of `n_cols` values are whole blocks of `kind`."""
    return bool(n_cols % GGML_QUANT_SIZES[kind][0] == 0)


def encode(rows: Array, dtype: str, kind: Type) -> Array:
    """`rows` of a stored dtype (see `rows.READABLE`) as a contiguous array that holds the bytes of ggml type `kind`.

    Raises:
        ConversionError: NaN or Infinity, or a value beyond the range of `kind`.
    """
    encoded = _encode(rows, dtype, kind)
    if kind in _INFINITY:
        _check_float_bits(encoded, *_INFINITY[kind])
    return encoded


def _encode(rows: Array, dtype: str, kind: Type) -> Array:
    if SAME_BYTES.get(dtype) is kind:
        return np.ascontiguousarray(rows)
    if dtype == "BF16" and kind is Type.F16:
        return _bfloat16_to_float16(np.ascontiguousarray(rows))
    values = np.ascontiguousarray(to_float32(rows, dtype))
    if kind in _ENCODERS:
        return _ENCODERS[kind](values)
    _check_finite(values)
    return quantize_rows(values, kind, row_bytes(values.shape[-1], kind))


def _float32(values: Float32Array) -> Array:
    return values


def _float16(values: Float32Array) -> Array:
    try:
        with np.errstate(over="raise"):
            return values.astype(np.float16)
    except FloatingPointError:
        largest = float(np.abs(values[np.isfinite(values)]).max())
        raise ConversionError(
            f"a weight of magnitude {largest:.6g} does not fit f16 (at most 65504); use --outtype bf16"
        ) from None


def _bfloat16_to_float16(bits: npt.NDArray[np.uint16]) -> Array:
    """Where float16 has a normal number for it, a bfloat16 fits exactly: its exponent moves, its fraction grows zeros.

    Eight times faster than by way of float32, which is left to the few values that are smaller (or larger).
    """
    magnitude = bits & np.uint16(0x7FFF)
    moved = magnitude << np.uint16(3)
    moved -= np.uint16(((127 - 15) << 10) & 0xFFFF)
    moved |= bits & np.uint16(0x8000)
    magnitude -= np.uint16((127 - 14) << 7)  # the smallest normal float16 becomes 0, what is below it wraps around
    others = np.flatnonzero(magnitude >= np.uint16(30 << 7))
    if others.size > bits.size // 8:
        return _float16(to_float32(bits, "BF16"))
    moved.ravel()[others] = _float16(to_float32(bits.ravel()[others], "BF16")).view(np.uint16)
    halves: Array = moved.view(np.float16)
    return halves


def _bfloat16(values: Float32Array) -> Array:
    if np.isnan(values).any():
        raise ConversionError(_BROKEN)
    bits = values.view(np.uint32)
    rounded = bits >> 16  # to nearest, halves to even
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def _q8_0(values: Float32Array) -> Bytes:
    """Blocks of a float16 scale d = max|x| / 127 and 32 signed bytes round(x / d), halves away from zero."""
    blocks = values.reshape(-1, _Q8_0_BLOCK)
    out = np.empty((len(blocks), 2 + _Q8_0_BLOCK), np.uint8)
    starts = np.arange(0, _Q8_0_TILE * _Q8_0_BLOCK, _Q8_0_BLOCK)
    for first in range(0, len(blocks), _Q8_0_TILE):
        x, tile = blocks[first : first + _Q8_0_TILE], out[first : first + _Q8_0_TILE]
        scaled = np.abs(x)
        # The bits of non-negative floats sort like the floats, and NumPy reduces integers three times faster.
        scales = np.maximum.reduceat(scaled.view(np.int32).ravel(), starts[: len(x)]).view(np.float32) / np.float32(127)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            stored_scales = scales.astype(np.float16)
            inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
            np.multiply(x, inverse[:, None], out=scaled)
        _check_finite(stored_scales)
        # trunc(v + copysign(pred(0.5), v)) rounds halves away from zero; with 0.5 itself, pred(0.5) would go to 1.
        bias = scaled.view(np.uint32) & _SIGN_BIT
        bias |= _ALMOST_HALF
        scaled += bias.view(np.float32)
        tile[:, :2] = stored_scales.view(np.uint8).reshape(-1, 2)
        tile[:, 2:].view(np.int8)[...] = scaled
    return out


def _with_gguf(kind: Type) -> Callable[[Float32Array], Array]:
    def encode_blocks(values: Float32Array) -> Array:
        _check_finite(values)
        blocks: Bytes = quants.quantize(values, kind)
        return blocks

    return encode_blocks


def _check_finite(values: Array) -> None:
    if not np.isfinite(values).all():
        raise ConversionError(_BROKEN)


def _check_float_bits(values: Array, unsigned: str, infinity: int) -> None:
    """The same by the bits of the floats, since NumPy has no bfloat16, and without a copy.

    Infinity and NaN have the largest bits of all; with the sign bit set, the largest of all unsigned ones.
    """
    bits = values.view(unsigned)
    sign = 1 << (8 * bits.itemsize - 1)
    if bits.size and (bits.max() >= sign + infinity or bits.view(unsigned.replace("u", "i")).max() >= infinity):
        raise ConversionError(_BROKEN)


_ENCODERS: dict[Type, Callable[[Float32Array], Array]] = {
    Type.F32: _float32,
    Type.F16: _float16,
    Type.BF16: _bfloat16,
    Type.Q8_0: _q8_0,
    **{kind: _with_gguf(kind) for kind in (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)},
}
