"""Calls of llama-cpp-python's methods, read as that class would read them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def arguments_of(method: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A function that takes what `method` takes and gives every argument but `self` by name, defaults included."""
    signature = inspect.signature(method)

    def arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name != "self"}

    return arguments
