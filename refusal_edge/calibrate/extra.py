"""What the extra "calibrate" installs, imported where it is needed; without it, one line that says what to install."""

from __future__ import annotations

import importlib
from typing import Any

from refusal_edge.errors import InvalidRequestError


def extra(module: str) -> Any:
    """The module of that name, say "scipy.stats".

    Raises:
        InvalidRequestError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            f"{error.name} is not installed: run `pip install 'refusal-edge[calibrate]'`"
        ) from None
