"""Every error that refusal-edge raises on purpose.

    RefusalEdgeError
    +-- InvalidPolicyError   (ValueError)    a policy, category or threshold outside its range
    +-- InvalidLogitsError   (ValueError)    NaN, +Inf, wrong shape, control id outside the vocabulary
    +-- InvalidRequestError  (ValueError)    a message list, parameter or row that cannot be served
    |   +-- PromptTooLongError
    +-- MetadataError        (ValueError)    a GGUF without, or with broken, `refusal_edge.*` keys
    +-- ConversionError      (ValueError)    a checkpoint that cannot be converted as asked
    |   +-- FormatError                      a safetensors, GGUF or tokenizer file that is broken or hostile
    +-- HostError            (ImportError)   the loaded llama-cpp-python library does not fit
    +-- StateError           (RuntimeError)  a `Llama` that is closed, or that another request has used meanwhile
    +-- RefusedError         (Exception)     on_refuse="raise": the policy refused; carries the decision

A message names the thing, its allowed range and the value it got, on one line, and says what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refusal_edge.decision import Decision

__all__ = [
    "ConversionError",
    "FormatError",
    "HostError",
    "InvalidLogitsError",
    "InvalidPolicyError",
    "InvalidRequestError",
    "MetadataError",
    "PromptTooLongError",
    "RefusalEdgeError",
    "RefusedError",
    "StateError",
]


class RefusalEdgeError(Exception):
    """Base of the tree; catching it catches everything this package raises on purpose."""


class InvalidPolicyError(RefusalEdgeError, ValueError):
    """A policy, category or control value is outside its allowed range."""


class InvalidLogitsError(RefusalEdgeError, ValueError):
    """The logits cannot be decided on: NaN, +Inf, wrong shape or size."""


class InvalidRequestError(RefusalEdgeError, ValueError):
    """A message list, a request parameter or a data row cannot be served."""


class PromptTooLongError(InvalidRequestError):
    """The prompt does not fit the context window."""


class MetadataError(RefusalEdgeError, ValueError):
    """A GGUF file lacks the `refusal_edge.*` keys, or they contradict the model."""


class ConversionError(RefusalEdgeError, ValueError):
    """A checkpoint cannot be converted as asked."""


class FormatError(ConversionError):
    """A safetensors, GGUF or tokenizer file is broken, truncated or hostile."""


class HostError(RefusalEdgeError, ImportError):
    """The loaded llama-cpp-python library does not match what the native sampler was built for."""


class StateError(RefusalEdgeError, RuntimeError):
    """A `Llama` cannot be used now: it is closed, or busy with, or was used by, another request."""


class RefusedError(RefusalEdgeError):
    """The policy refused and `on_refuse="raise"` was asked for.

    Attributes:
        decision: the `Decision` that refused.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__(
            f"refused: category {decision.category!r} scored {decision.scores[decision.category]:.3f}"
            if decision.category is not None
            else "refused"
        )
        self.decision = decision
