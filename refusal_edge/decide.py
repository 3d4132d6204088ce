"""The rule alone, on any array of logits: no model and no llama.cpp needed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refusal_edge import _native
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidLogitsError, InvalidPolicyError
from refusal_edge.policy import Policy


def decide_logits(logits: npt.ArrayLike, policy: Policy) -> Decision:
    """Decides by `policy` on raw logits: float32, shape (n_vocab,), before any temperature, bias or penalty.

    A contiguous float32 array is read in place; anything else is converted first. `Decision.calibrated` is False: there
    is no file here that a calibration could be held against.

    Raises:
        InvalidPolicyError: `policy` is no Policy.
        InvalidLogitsError: wrong shape or type, NaN or +Inf, no finite control logit, a control id out of range.
    """
    if not isinstance(policy, Policy):
        raise InvalidPolicyError(f"policy: expected a Policy, got {type(policy).__name__}")
    try:
        row = np.asarray(logits, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidLogitsError(
            f"logits: expected an array of numbers, got {type(logits).__name__}: {error}"
        ) from None
    return _native.decide(row, policy)
