"""What was decided at the boundary, and on what evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from refusal_edge.policy import ControlValue

Outcome = Literal["refuse", "respond", "no_decision"]


@dataclass(frozen=True)
class Decision:
    """The outcome of one policy on the logits of one boundary position.

    Attributes:
        outcome: "refuse", "respond", or "no_decision" (the control tokens hold too little probability).
        category: slug of the category refused for, else None.
        token_id: the token to emit; None where the policy's fallback lets the model sample normally.
        scores: slug -> score q in [0, 1] under the policy's `score` and `temperature`.
        respond_score: the same for the respond token.
        control_mass: probability of all control tokens together, in [0, 1].
        thresholds: slug -> control value in force.
        model_token_id: argmax of the whole vocabulary: what the model itself would have picked.
        policy_id: hash of the effective policy.
        calibrated: whether the policy's pins match the loaded model.
        logits: slug -> raw logit; `respond_logit` the same. With `log_normalizer` (log of the sum of exp(z/T) over the
            vocabulary) every other policy can be replayed without the model.
    """

    outcome: Outcome
    category: str | None
    token_id: int | None
    scores: Mapping[str, float]
    respond_score: float
    control_mass: float
    thresholds: Mapping[str, ControlValue]
    model_token_id: int
    policy_id: str
    calibrated: bool
    logits: Mapping[str, float]
    respond_logit: float
    log_normalizer: float

    @property
    def refused(self) -> bool:
        return self.outcome == "refuse"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything but the raw logits."""
        return {
            "outcome": self.outcome,
            "category": self.category,
            "token_id": self.token_id,
            "scores": dict(self.scores),
            "respond_score": self.respond_score,
            "control_mass": self.control_mass,
            "thresholds": dict(self.thresholds),
            "model_token_id": self.model_token_id,
            "policy_id": self.policy_id,
            "calibrated": self.calibrated,
        }
