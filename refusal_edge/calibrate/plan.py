"""Which benign rows speak for which category, and how much of delta each statement gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from refusal_edge.calibrate.thresholds import CertifiedMethod, rows_needed
from refusal_edge.errors import InvalidRequestError

Scope = Literal["category", "pooled", "union"]


@dataclass(frozen=True)
class Statement:
    """One promise to make: "at most alpha of these benign rows pass one of these categories", at confidence 1 - delta.

    Attributes:
        categories: slugs that get their threshold here.
        rows: slug whose benign rows are used, or None for all benign rows.
    """

    categories: tuple[str, ...]
    rows: str | None
    alpha: float
    delta: float


@dataclass(frozen=True)
class Uncertified:
    """A category that these rows cannot certify on its own, and the benign rows that it has and needs."""

    category: str
    n: int
    needed: int


def plan(
    method: CertifiedMethod,
    scope: Scope,
    benign: Mapping[str, int],
    n_benign: int,
    alpha: float,
    delta: float,
) -> tuple[list[Statement], list[Uncertified]]:
    """Splits the promise over the categories.

    "pooled": one threshold for all categories from all benign rows; the promise is about being refused at all.
    "union": a threshold for each of K categories from all benign rows at alpha / K and delta / K; by the union bound
        the promise is about being refused at all.
    "category": each category from its own benign rows at alpha and delta / (number of statements) (Bonferroni); the
        promise is about passing that category on its rows, not about being refused through another one. Categories with
        too few rows share one threshold from all benign rows, a statement more.

    crc promises a mean, which needs no delta: it is not split.

    Args:
        benign: slug -> benign rows of its own, for the categories to calibrate. n_benign: all benign rows.

    Raises:
        InvalidRequestError: too few benign rows for any promise, with the number needed.
    """
    slugs = tuple(benign)

    def enough(statement: Statement) -> bool:
        n = n_benign if statement.rows is None else benign[statement.rows]
        return n >= rows_needed(method, statement.alpha, statement.delta)

    if scope == "union":
        options = [[Statement((slug,), None, alpha / len(slugs), delta / len(slugs)) for slug in slugs]]
    elif scope == "pooled":
        options = [[Statement(slugs, None, alpha, delta)]]
    else:
        richest = sorted(slugs, key=lambda slug: -benign[slug])
        options = [_by_category(slugs, set(richest[:k]), alpha, delta) for k in range(len(slugs), -1, -1)]
    for statements in options:
        if all(map(enough, statements)):
            return statements, _uncertified(method, scope, statements, benign, alpha, delta)
    last = options[-1][0]
    confidence = "" if method == "crc" else f" with confidence {1 - delta:g}"
    raise InvalidRequestError(
        f"{method}: cannot certify a false-positive rate of {alpha:g}{confidence} (scope {scope}) from {n_benign} "
        f"benign rows: needs at least {rows_needed(method, last.alpha, last.delta)}"
    )


def _uncertified(
    method: CertifiedMethod,
    scope: Scope,
    statements: Sequence[Statement],
    benign: Mapping[str, int],
    alpha: float,
    delta: float,
) -> list[Uncertified]:
    """The categories without a promise of their own, and how many rows one more such promise takes."""
    own = {s.rows for s in statements if s.rows is not None}
    rest = [slug for slug in benign if slug not in own]
    share = delta / (len(own) + 1 + (len(rest) > 1)) if scope == "category" else delta
    needed = rows_needed(method, alpha, share)
    return [Uncertified(slug, benign[slug], needed) for slug in rest if benign[slug] < needed]


def _by_category(slugs: Sequence[str], own: set[str], alpha: float, delta: float) -> list[Statement]:
    rest = tuple(slug for slug in slugs if slug not in own)
    share = delta / (len(own) + bool(rest))
    statements = [Statement((slug,), slug, alpha, share) for slug in slugs if slug in own]
    return [*statements, Statement(rest, None, alpha, share)] if rest else statements
