"""What may be refused, and from which score on: the policy, an immutable value."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from refusal_edge.errors import InvalidPolicyError
from refusal_edge.numbers import as_integer, as_number, shown

Rule = Literal["threshold", "sum", "paper-single", "paper-argmax", "paper-category"]
Score = Literal["control", "vocab"]
Fallback = Literal["model", "respond", "refuse"]
ControlValue = float | Literal["off", "model"]
THRESHOLD_CODES: Final[dict[Literal["off", "model"], float]] = {"model": -1.0, "off": 2.0}
"""How a control value that is no threshold is written as a number: in GGUF files and in the C library."""

RULES: Final = get_args(Rule)
SCORES: Final = get_args(Score)
FALLBACKS: Final = get_args(Fallback)
MAX_CATEGORIES: Final = 64
ONE_CATEGORY_RULES: Final = ("paper-single", "paper-argmax")

_SLUG = re.compile(r"[a-z][a-z0-9_]{0,62}")


def control_value(name: str, value: object) -> ControlValue:
    """Returns `value` as a control value: a threshold in [0, 1], "off" or "model".

    Raises:
        InvalidPolicyError: anything else, NaN and booleans included.
    """
    if isinstance(value, str) and value in THRESHOLD_CODES:
        return "off" if value == "off" else "model"
    return _number(name, value, 0.0, 1.0, or_else=', "off" or "model"')


def _number(name: str, value: object, low: float, high: float, or_else: str = "") -> float:
    number = as_number(value)
    if number is None or not low <= number <= high:
        raise InvalidPolicyError(f"{name}: expected a number in [{low:g}, {high:g}]{or_else}, got {shown(value)}")
    return number


def _positive(name: str, value: object) -> float:
    number = as_number(value)
    if number is None or number <= 0:
        raise InvalidPolicyError(f"{name}: expected a finite number > 0, got {shown(value)}")
    return number


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidPolicyError(f"{name}: expected one of {', '.join(allowed)}, got {shown(value)}")


def _token_id(name: str, value: object) -> int:
    token_id = as_integer(value)
    if token_id is None or not 0 <= token_id < 2**31:
        raise InvalidPolicyError(f"{name}: expected a token id in [0, 2147483647], got {shown(value)}")
    return token_id


def _listed(categories: object) -> tuple[Any, ...]:
    if isinstance(categories, (str, bytes, Mapping)) or not isinstance(categories, Iterable):
        raise InvalidPolicyError(f"categories: expected a list of Category, got {shown(categories)}")
    return tuple(categories)


@dataclass(frozen=True)
class Category:
    """One kind of refusal: its slug (`safety`), control token, control value and title.

    A control value is a threshold in [0, 1], "off" (never refuse for it) or "model" (as the model itself would).
    """

    id: str
    token_id: int
    threshold: ControlValue = "model"
    title: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _SLUG.fullmatch(self.id):
            raise InvalidPolicyError(f"category id: expected lower-case letters, digits and _, got {self.id!r}")
        if self.id in _RESERVED:
            raise InvalidPolicyError(f"category id: {self.id!r} is the name of a policy field; choose another")
        object.__setattr__(self, "token_id", _token_id(f"category {self.id}: token_id", self.token_id))
        if not isinstance(self.title, str):
            raise InvalidPolicyError(f"category {self.id}: title: expected a string, got {self.title!r}")
        object.__setattr__(self, "threshold", control_value(f"threshold of category {self.id}", self.threshold))
        object.__setattr__(self, "title", self.title or self.id.replace("_", " ").capitalize())


@dataclass(frozen=True)
class Policy:
    """Rule, score, temperature and one control value per category. Immutable; `replace` makes a changed copy.

    Attributes:
        categories: at least one, ids and token ids unique; their order breaks ties (the earlier wins).
        respond_token_id: the token that means "answer".
        rule: "threshold" (a category passes if its score >= its threshold; the largest passing score wins),
            "sum" (refuse iff the scores of all categories not off add up to >= `sum_threshold`), or one of the
            published scripts' rules "paper-single", "paper-argmax", "paper-category" (arXiv 2412.06748).
        score: "control" (softmax over the control tokens only) or "vocab" (over the whole vocabulary).
        temperature: > 0, divides the logits before the softmax.
        min_control_mass: below this probability of all control tokens together the outcome is "no_decision".
        fallback: what a "no_decision" emits: "model" (sample normally), "respond" or "refuse".
        sum_threshold: threshold in [0, 1] of the rule "sum".
    """

    categories: tuple[Category, ...]
    respond_token_id: int
    rule: Rule = "threshold"
    score: Score = "control"
    temperature: float = 1.0
    min_control_mass: float = 0.5
    fallback: Fallback = "model"
    sum_threshold: float = 0.5
    policy_id: str = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        categories: Iterable[Category],
        respond_token_id: int,
        rule: Rule = "threshold",
        score: Score = "control",
        temperature: float = 1.0,
        min_control_mass: float = 0.5,
        fallback: Fallback = "model",
        sum_threshold: float = 0.5,
    ) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        _choice("rule", rule, RULES)
        _choice("score", score, SCORES)
        _choice("fallback", fallback, FALLBACKS)
        put("categories", _listed(categories))
        put("respond_token_id", _token_id("respond_token_id", respond_token_id))
        put("rule", rule)
        put("score", score)
        put("fallback", fallback)
        put("temperature", _positive("temperature", temperature))
        put("min_control_mass", _number("min_control_mass", min_control_mass, 0.0, 1.0))
        put("sum_threshold", _number("sum_threshold", sum_threshold, 0.0, 1.0))
        self._check_categories()
        put("policy_id", hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16])

    def _check_categories(self) -> None:
        for category in self.categories:
            if not isinstance(category, Category):
                raise InvalidPolicyError(f"categories: expected Category objects, got {category!r}")
        if not 1 <= len(self.categories) <= MAX_CATEGORIES:
            raise InvalidPolicyError(f"categories: expected 1 to {MAX_CATEGORIES}, got {len(self.categories)}")
        slugs = [c.id for c in self.categories]
        for slug in slugs:
            if slugs.count(slug) > 1:
                raise InvalidPolicyError(f"categories: the id {slug!r} is used twice")
        owners: dict[int, str] = {self.respond_token_id: "respond"}
        for c in self.categories:
            if (other := owners.setdefault(c.token_id, c.id)) != c.id:
                raise InvalidPolicyError(f"token id {c.token_id} is used for both {other!r} and {c.id!r}")
        if self.rule in ONE_CATEGORY_RULES and len(self.categories) != 1:
            raise InvalidPolicyError(f"rule {self.rule!r}: needs exactly 1 category, got {len(self.categories)}")
        if self.rule == "paper-single" and self.categories[0].threshold == "model":
            raise InvalidPolicyError(
                f"rule 'paper-single': threshold of category {self.categories[0].id}: "
                "expected a number in [0, 1] or \"off\", got 'model'"
            )

    @property
    def thresholds(self) -> dict[str, ControlValue]:
        """The control value in force for each category, in category order."""
        return {c.id: c.threshold for c in self.categories}

    @property
    def control_token_ids(self) -> tuple[int, ...]:
        """Token ids of the categories in order, then of respond."""
        return (*(c.token_id for c in self.categories), self.respond_token_id)

    def category(self, slug: str) -> Category:
        """The category of that id.

        Raises:
            InvalidPolicyError: there is none; the message lists those there are.
        """
        for c in self.categories:
            if c.id == slug:
                return c
        raise InvalidPolicyError(f"unknown category {slug!r}: this model has {', '.join(self.thresholds)}")

    def replace(self, **changes: Any) -> Policy:
        """A copy with some fields or control values changed: `policy.replace(safety=0.3, humanizing="off")`.

        A category that is not named keeps its control value.

        Raises:
            InvalidPolicyError: a name that is neither a field nor a category, or a value out of range.
        """
        fields = {name: changes.pop(name) for name in _CHANGEABLE if name in changes}
        categories = _listed(fields.pop("categories", self.categories))
        known = [c.id for c in categories if isinstance(c, Category)]
        for name in changes:
            if name not in known:
                raise InvalidPolicyError(
                    f"unknown category {name!r}: expected one of {', '.join(known)}, "
                    f"or a policy field ({', '.join(_CHANGEABLE)})"
                )
        fields["categories"] = tuple(
            dataclasses.replace(c, threshold=changes[c.id]) if c.id in changes else c for c in categories
        )
        return Policy(**{**{name: getattr(self, name) for name in _CHANGEABLE}, **fields})

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, complete: `Policy.from_dict(p.to_dict()) == p`."""
        plain = {name: getattr(self, name) for name in _CHANGEABLE if name != "categories"}
        return {**plain, "categories": [dataclasses.asdict(c) for c in self.categories]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidPolicyError: unknown or missing fields, or a value out of range.
        """
        if not isinstance(data, Mapping):
            raise InvalidPolicyError(f"policy: expected an object, got {type(data).__name__}")
        if unknown := sorted(map(str, set(data) - set(_CHANGEABLE))):
            raise InvalidPolicyError(f"policy: unknown field {unknown[0]!r}: expected {', '.join(_CHANGEABLE)}")
        rows = data.get("categories")
        if not isinstance(rows, list) or "respond_token_id" not in data:
            raise InvalidPolicyError("policy: expected the fields categories (a list) and respond_token_id")
        try:
            categories = [Category(**row) for row in rows]
        except TypeError as error:
            raise InvalidPolicyError(f"policy: categories: expected id, token_id, threshold, title: {error}") from None
        return cls(**{**data, "categories": categories})


_CHANGEABLE: Final = tuple(f.name for f in dataclasses.fields(Policy) if f.init)
_RESERVED: Final = frozenset({*_CHANGEABLE, "respond", "policy_id"})
