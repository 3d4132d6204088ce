"""Whether rows that are measured are rows that calibrated, in whatever order or company they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

DIGITS: Final = 16
KEPT: Final = 4096


def sketch(digests: Iterable[str]) -> tuple[str, ...]:
    """The smallest of the shortened digests, at most 4,096: all rows of a usual file, a fair draw of a huge one.

    A digest's place in the order depends on its row alone, so the small ones of two files can be compared (bottom-k
    sketch, Cohen and Kaplan 2007).
    """
    return tuple(sorted({digest[:DIGITS] for digest in digests})[:KEPT])


def shared_rows(calibrated: Sequence[str], digests: Sequence[str]) -> int:
    """How many of the rows `digests` are among those of the sketch `calibrated`; estimated where that is not whole."""
    held = set(calibrated)
    short = [digest[:DIGITS] for digest in digests]
    if len(calibrated) < KEPT:
        return sum(digest in held for digest in short)
    comparable = [digest for digest in short if digest <= calibrated[-1]]
    hits = sum(digest in held for digest in comparable)
    return round(hits / len(comparable) * len(short)) if comparable else 0
