"""The `refusal_edge.*` keys of a GGUF file: what the control tokens are and which policy ships with the model.

Only scalars, so that any llama.cpp host reads them with `llama_model_meta_val_str`. That function prints floats with
six decimals; numbers are rounded to six decimals on both ways, so that every reader sees the same policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from refusal_edge.errors import InvalidPolicyError, MetadataError
from refusal_edge.policy import MAX_CATEGORIES, THRESHOLD_CODES, Category, ControlValue, Policy

if TYPE_CHECKING:
    from gguf import GGUFValueType

PREFIX: Final = "refusal_edge."
VERSION: Final = 1
TOKEN_TYPES: Final = ("sealed", "control", "user")
REACHABLE: Final = ("never", "special", "text")
"""How text becomes a control token in stock llama.cpp: never, only with parse_special, or as plain text too."""

_DECIMALS: Final = 6
CALIBRATION_PINS: Final = {
    "method": str,
    "scope": str,
    "alpha": float,
    "delta": float,
    "n": int,
    "dataset_sha256": str,
    "template_sha256": str,
    "file_type": int,
    "weights_sha256": str,
    "weights_sample": str,
    "policy_id": str,
    "created": str,
}


@dataclass(frozen=True)
class Stamp:
    """Everything that refusal-edge writes into a model file.

    Attributes:
        respond_token_id, categories, rule, score, temperature, min_control_mass, fallback, sum_threshold: as in
            `Policy`; `sum_threshold` None leaves that key out.
        token_type: how the vocabulary holds the control tokens, one of `TOKEN_TYPES`.
        reachable: result of the converter's self-test, one of `REACHABLE`; None where none was run.
        calibration: values of `CALIBRATION_PINS`, those that are known; None if uncalibrated.
    """

    respond_token_id: int
    categories: tuple[Category, ...]
    rule: str = "threshold"
    score: str = "control"
    temperature: float = 1.0
    min_control_mass: float = 0.5
    token_type: str = "sealed"
    fallback: str = "model"
    sum_threshold: float | None = None
    reachable: str | None = None
    calibration: dict[str, Any] | None = None
    version: int = VERSION

    @cached_property
    def policy(self) -> Policy:
        """The policy that ships with the model.

        Raises:
            MetadataError: a value out of range, or one token in two roles.
        """
        optional = {} if self.sum_threshold is None else {"sum_threshold": self.sum_threshold}
        try:
            return Policy(
                self.categories,
                self.respond_token_id,
                rule=self.rule,  # type: ignore[arg-type]
                score=self.score,  # type: ignore[arg-type]
                temperature=self.temperature,
                min_control_mass=self.min_control_mass,
                fallback=self.fallback,  # type: ignore[arg-type]
                **optional,
            )
        except InvalidPolicyError as error:
            raise MetadataError(f"refusal_edge.* keys: {error}") from None

    def to_kv(self) -> list[tuple[str, Any, GGUFValueType]]:
        """(key, value, type) of every key, in the order in which they are written."""
        from gguf import GGUFValueType

        types = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
        return [(PREFIX + key, value, types[type(value)]) for key, value in self._items()]

    def _items(self) -> Iterator[tuple[str, str | int | float]]:
        yield "version", self.version
        yield "respond_token_id", self.respond_token_id
        yield "category.count", len(self.categories)
        for i, category in enumerate(self.categories):
            yield f"category.{i}.id", category.id
            yield f"category.{i}.title", category.title
            yield f"category.{i}.token_id", category.token_id
            yield f"category.{i}.threshold", _encode(category.threshold)
        yield "rule", self.rule
        yield "score", self.score
        yield "temperature", _rounded(self.temperature)
        yield "min_control_mass", _rounded(self.min_control_mass)
        yield "fallback", self.fallback
        if self.sum_threshold is not None:
            yield "threshold", _rounded(self.sum_threshold)
        yield "token_type", self.token_type
        if self.reachable is not None:
            yield "reachable", self.reachable
        for name, value in (self.calibration or {}).items():
            yield f"calibration.{name}", _rounded(value) if isinstance(value, float) else value

    @classmethod
    def from_kv(cls, mapping: Mapping[str, Any], n_vocab: int | None = None) -> Stamp:
        """Reads the keys from typed values (`GGUFFile.kv`) or from llama.cpp's strings (`Llama.metadata`).

        Args:
            n_vocab: size of the vocabulary, when known: ids beyond it are refused.

        Raises:
            MetadataError: no keys, an unknown version, a missing, malformed or duplicate value, an id >= n_vocab.
        """
        if not is_stamped(mapping):
            raise MetadataError(
                "the file has no refusal_edge.* keys: add them with `refusal-edge annotate IN.gguf -o OUT.gguf`"
            )
        read = _Values(mapping, n_vocab)
        version = read.integer("version")
        if version != VERSION:
            raise MetadataError(f"refusal_edge.version: expected {VERSION}, got {version}: upgrade refusal-edge")
        count = read.integer("category.count")
        if not 1 <= count <= MAX_CATEGORIES:
            raise MetadataError(f"refusal_edge.category.count: expected 1 to {MAX_CATEGORIES}, got {count}")
        stamp = cls(
            respond_token_id=read.token_id("respond_token_id"),
            categories=tuple(read.category(i) for i in range(count)),
            rule=read.text("rule", "threshold"),
            score=read.text("score", "control"),
            temperature=read.number("temperature", 1.0),
            min_control_mass=read.number("min_control_mass", 0.5),
            token_type=read.choice("token_type", TOKEN_TYPES, "control"),
            fallback=read.text("fallback", "model"),
            sum_threshold=read.number("threshold") if read.has("threshold") else None,
            reachable=read.choice("reachable", REACHABLE) if read.has("reachable") else None,
            calibration=read.calibration(),
            version=version,
        )
        _ = stamp.policy  # ranges, duplicates
        return stamp


def is_stamped(mapping: Mapping[str, Any]) -> bool:
    """Whether the metadata holds `refusal_edge.*` keys at all."""
    return PREFIX + "version" in mapping


@dataclass(frozen=True)
class _Values:
    """The mapping, read key by key; a key without a default must be there."""

    mapping: Mapping[str, Any]
    n_vocab: int | None

    def has(self, key: str) -> bool:
        return PREFIX + key in self.mapping

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._typed(key, default, str, "a string"))

    def choice(self, key: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise MetadataError(f"{PREFIX}{key}: expected one of {', '.join(allowed)}, got {value!r}")
        return value

    def integer(self, key: str) -> int:
        return int(self._typed(key, None, int, "an integer"))

    def number(self, key: str, default: float | None = None) -> float:
        return _rounded(self._typed(key, default, float, "a number"))

    def token_id(self, key: str) -> int:
        value = self.integer(key)
        if not 0 <= value < (2**31 if self.n_vocab is None else self.n_vocab):
            limit = "" if self.n_vocab is None else f"; the vocabulary has {self.n_vocab} tokens"
            raise MetadataError(f"{PREFIX}{key}: token id {value} is out of range{limit}")
        return value

    def category(self, i: int) -> Category:
        key = f"category.{i}."
        slug, title, token_id = self.text(key + "id"), self.text(key + "title", ""), self.token_id(key + "token_id")
        threshold = self.number(key + "threshold", THRESHOLD_CODES["model"])
        try:
            return Category(slug, token_id, _decode(threshold), title)
        except InvalidPolicyError as error:
            raise MetadataError(f"{PREFIX}{key[:-1]}: {error}") from None

    def calibration(self) -> dict[str, Any] | None:
        prefix = PREFIX + "calibration."
        found = [key.removeprefix(prefix) for key in self.mapping if key.startswith(prefix)]
        if not found:
            return None
        known: dict[type, Callable[[str], Any]] = {str: self.text, int: self.integer, float: self.number}
        return {
            name: known[CALIBRATION_PINS[name]](f"calibration.{name}") for name in found if name in CALIBRATION_PINS
        }

    def _typed(self, key: str, default: Any, kind: type, expected: str) -> Any:
        value = self.mapping.get(PREFIX + key, default)
        if value is None:
            raise MetadataError(f"{PREFIX}{key} is missing: stamp the file again with `refusal-edge annotate`")
        try:
            number = kind(value)
            if isinstance(value, bool) or (kind is not float and value not in (number, str(number))):
                raise ValueError
            return number
        except (TypeError, ValueError):
            raise MetadataError(f"{PREFIX}{key}: expected {expected}, got {value!r}") from None


def _rounded(value: float) -> float:
    return round(float(value), _DECIMALS)


def _encode(threshold: ControlValue) -> float:
    return THRESHOLD_CODES[threshold] if isinstance(threshold, str) else _rounded(threshold)


def _decode(number: float) -> ControlValue:
    words: dict[float, ControlValue] = {code: word for word, code in THRESHOLD_CODES.items()}
    return words.get(number, number)
