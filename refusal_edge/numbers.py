"""Numbers and other values as callers give them: read without trusting their type or size."""

from __future__ import annotations

import math
import numbers
from typing import Final

FLOAT32_MAX: Final = 3.4028234663852886e38


def as_number(value: object) -> float | None:
    """A finite float, from any real number but a boolean (NumPy's too); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number + 0.0 if math.isfinite(number) else None  # -0.0 becomes 0.0


def as_integer(value: object) -> int | None:
    """An int, from any integer but a boolean (NumPy's too); None for anything else."""
    return None if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)


def is_unicode(text: str) -> bool:
    """Whether a string has a UTF-8 form: it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """`repr`, on one line and not long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an int of more digits than Python converts
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= 80 else text[:77] + "..."
