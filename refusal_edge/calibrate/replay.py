"""What a policy decides on stored scores: the reference rule, row by row, no model needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import odds
from refusal_edge.calibrate.scorefile import ScoreTable
from refusal_edge.policy import Policy
from refusal_edge.reference import apply_rule


@dataclass(frozen=True)
class Replay:
    """Outcomes of n rows.

    Attributes:
        refused: (n,) bool. no_decision: (n,) bool, control mass below the policy's minimum.
        category: (n,) index of the category refused for, -1 for none.
        turned_away: (n,) bool, a refusal token is forced: refused, or no decision and the fallback is "refuse".
    """

    refused: npt.NDArray[np.bool_]
    no_decision: npt.NDArray[np.bool_]
    category: npt.NDArray[np.int64]
    turned_away: npt.NDArray[np.bool_]

    def same_as(self, other: Replay) -> npt.NDArray[np.bool_]:
        """(n,) whether both decide the same, category included."""
        return np.asarray(
            (self.refused == other.refused)
            & (self.no_decision == other.no_decision)
            & (self.category == other.category)
        )


def replay(table: ScoreTable, policy: Policy) -> Replay:
    """Applies `policy` to every row.

    The control mass is that of the temperature of scoring: at another one it is not known from the control logits.
    """
    z = table.logits.astype(np.float64)
    q = odds.scores(table, policy)
    mass = odds.control_mass(table, policy)
    verdicts = [apply_rule(policy, q[i], z[i], float(mass[i]), int(table.model_token[i])) for i in range(len(table))]
    refused = np.array([outcome == "refuse" for outcome, _, _ in verdicts], bool)
    no_decision = np.array([outcome == "no_decision" for outcome, _, _ in verdicts], bool)
    forced = np.isin([-1 if token is None else token for _, _, token in verdicts], policy.control_token_ids[:-1])
    return Replay(
        refused=refused,
        no_decision=no_decision,
        category=np.array([-1 if index is None else index for _, index, _ in verdicts], np.int64),
        turned_away=refused | (no_decision & forced & (policy.fallback == "refuse")),
    )
