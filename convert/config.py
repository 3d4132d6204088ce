"""`config.json` as the converter reads it: defaults filled in, every value checked where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refusal_edge.errors import ConversionError, FormatError

from .jsonfile import shown

FLOAT32_MAX = 3.4028234663852886e38
FLOAT32_TINY = 1.401298464324817e-45
POSITIVE = "a number above 0"


class Config(Mapping[str, Any]):
    """The values of one `config.json`; a missing key takes the family's default, null stays null.

    Transformers leaves out what equals its own default, so a bare file is not the whole truth.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], source: str) -> None:
        self._values = {**defaults, **values}
        self._source = source

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def count(self, key: str, maximum: int = 2**31 - 1) -> int:
        """A positive integer."""
        value = self.get(key)
        if type(value) is not int or not 1 <= value <= maximum:
            raise self.broken(key, f"an integer in [1, {maximum}]")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        return finite(self.get(key), lambda: self.broken(key, "a finite number"))

    def positive(self, key: str) -> float:
        """A finite number above 0: llama.cpp divides by it, or takes 0 to mean "not given"."""
        return positive(self.get(key), lambda: self.broken(key, POSITIVE))

    def first(self, *keys: str, default: Any) -> Any:
        """The first of `keys` that is neither missing nor null."""
        return next((self[key] for key in keys if self.get(key) is not None), default)

    def flag(self, key: str) -> bool:
        """A boolean; missing and null count as false."""
        value = self.first(key, default=False)
        if not isinstance(value, bool):
            raise self.broken(key, "true or false")
        return value

    def broken(self, key: str, expected: str) -> FormatError:
        """The error for a `key` whose value is not what was `expected`."""
        return self.broken_value(key, expected, self.get(key))

    def broken_value(self, place: str, expected: str, value: object) -> FormatError:
        """The same for a value within a nested object."""
        return FormatError(f"{self._source}: {place} must be {expected}, got {shown(value)}")

    def unsupported(self, what: str) -> ConversionError:
        """The error for a model that llama.cpp could load but would compute wrongly, or not at all."""
        return ConversionError(f"{self._source}: {what}")

    # The derived sizes that shapes and keys are made of.

    @property
    def n_layers(self) -> int:
        return self.count("num_hidden_layers", maximum=512)  # LLAMA_MAX_LAYERS

    @property
    def hidden(self) -> int:
        return self.count("hidden_size")

    @property
    def n_heads(self) -> int:
        return self.count("num_attention_heads")

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads if self.get("num_key_value_heads") is None else self.count("num_key_value_heads")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.n_heads if self.get("head_dim") is None else self.count("head_dim")


def finite(value: Any, error: Any) -> float:
    """`value` as a float; raises `error()` unless it is a number that float32 can hold."""
    if type(value) not in (int, float) or not abs(value) <= FLOAT32_MAX:
        raise error()
    return float(value)


def positive(value: Any, error: Any) -> float:
    """The same for a number that is still above 0 as float32."""
    number = finite(value, error)
    if number < FLOAT32_TINY:
        raise error()
    return number
