"""The public API of refusal-edge, imported on first use: NumPy and llama.cpp take their time to load."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from refusal_edge.errors import RefusalEdgeError, RefusedError

if TYPE_CHECKING:
    from refusal_edge.decide import decide_logits
    from refusal_edge.decision import Decision
    from refusal_edge.llama import Llama
    from refusal_edge.policy import Category, Policy

__version__ = "0.1.0"
__all__ = ["Category", "Decision", "Llama", "Policy", "RefusalEdgeError", "RefusedError", "decide_logits"]


_HOMES = {"Category": "policy", "Decision": "decision", "Llama": "llama", "Policy": "policy", "decide_logits": "decide"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'refusal_edge' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"refusal_edge.{_HOMES[name]}"), name)
    return value
