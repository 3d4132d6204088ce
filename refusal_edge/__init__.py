"""The public API of refusal-edge; `Llama` is imported on first use, since it loads llama.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refusal_edge.decide import decide_logits
from refusal_edge.decision import Decision
from refusal_edge.errors import RefusalEdgeError, RefusedError
from refusal_edge.policy import Category, Policy

if TYPE_CHECKING:
    from refusal_edge.llama import Llama

__version__ = "0.1.0"
__all__ = ["Category", "Decision", "Llama", "Policy", "RefusalEdgeError", "RefusedError", "decide_logits"]


def __getattr__(name: str) -> Any:
    if name != "Llama":
        raise AttributeError(f"module 'refusal_edge' has no attribute {name!r}")
    from refusal_edge.llama import Llama

    return Llama
