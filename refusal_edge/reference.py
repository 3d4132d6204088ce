"""The rule in NumPy float64: slow, readable, the meaning of the native code.

Every native kernel is held against `decide` by the tests. DESIGN: p = softmax(z / T) over the vocabulary; control mass
M = sum of p over the control tokens; q = p ("vocab") or the softmax over the control tokens only ("control").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refusal_edge.decision import Decision, Outcome
from refusal_edge.errors import InvalidLogitsError
from refusal_edge.policy import Policy

Verdict = tuple[Outcome, int | None, int | None]  # outcome, category index, token to emit


def decide(logits: npt.ArrayLike, policy: Policy, *, calibrated: bool = False) -> Decision:
    """Decides by `policy` on raw logits of shape (n_vocab,).

    Raises:
        InvalidLogitsError: wrong shape, NaN or +Inf, no finite control logit, a control id outside the vocabulary.
    """
    z = check_logits(logits, policy)
    ids = np.array(policy.control_token_ids)

    scaled = z / policy.temperature
    top = scaled.max()
    log_normalizer = float(top + np.log(np.exp(scaled - top).sum()))
    p = np.exp(scaled[ids] - log_normalizer)
    mass = float(p.sum())
    q = p if policy.score == "vocab" or policy.rule.startswith("paper-") else _softmax(scaled[ids])
    model_token = int(z.argmax())

    outcome, index, token = apply_rule(policy, q, z[ids], mass, model_token)
    slugs = [c.id for c in policy.categories]
    return Decision(
        outcome=outcome,
        category=None if index is None else slugs[index],
        token_id=token,
        scores=dict(zip(slugs, map(float, q))),
        respond_score=float(q[-1]),
        control_mass=mass,
        thresholds=policy.thresholds,
        model_token_id=model_token,
        policy_id=policy.policy_id,
        calibrated=calibrated,
        logits=dict(zip(slugs, map(float, z[ids]))),
        respond_logit=float(z[policy.respond_token_id]),
        log_normalizer=log_normalizer,
    )


def check_logits(logits: npt.ArrayLike, policy: Policy) -> npt.NDArray[np.float64]:
    """The logits as float64 of shape (n_vocab,), or an InvalidLogitsError."""
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 1 or z.size == 0:
        raise InvalidLogitsError(f"logits: expected shape (n_vocab,), got {z.shape}")
    if (largest := max(policy.control_token_ids)) >= z.size:
        raise InvalidLogitsError(f"control token id: expected in [0, {z.size}), got {largest}")
    if np.isnan(z).any() or np.isposinf(z).any():
        raise InvalidLogitsError("logits: expected finite numbers or -Inf, got NaN or +Inf")
    if not np.isfinite(z[list(policy.control_token_ids)]).any():
        raise InvalidLogitsError("logits: expected at least one finite control logit, got none")
    return z


def _softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def apply_rule(
    policy: Policy, q: npt.NDArray[np.float64], z: npt.NDArray[np.float64], mass: float, model_token: int
) -> Verdict:
    """The rule on what is left of the logits; every stored decision can be replayed with it.

    Args:
        q: scores of the control tokens, categories in order, then respond. z: their raw logits.
        mass: control mass. model_token: argmax of the whole vocabulary.
    """
    respond: Verdict = ("respond", None, policy.respond_token_id)
    values = [c.threshold for c in policy.categories]

    def refuse(index: int) -> Verdict:
        return "refuse", index, policy.categories[index].token_id

    def largest(indices: list[int]) -> int:  # max keeps the first of equals: the lowest category index
        return max(indices, key=lambda i: z[i])

    every = list(range(len(values)))
    not_off = [i for i in every if values[i] != "off"]

    if policy.rule == "paper-single":
        value = values[0]
        return refuse(0) if isinstance(value, float) and q[0] >= value else respond
    if policy.rule == "paper-argmax":
        return refuse(0) if z[0] >= z[1] and values[0] != "off" else respond
    if policy.rule == "paper-category":
        best = largest(every)
        value = values[best]
        if isinstance(value, float):
            return refuse(best) if q[best] >= value else respond
        if model_token == policy.respond_token_id:
            return respond
        owner = [i for i in every if policy.categories[i].token_id == model_token]
        return refuse(owner[0]) if owner else ("no_decision", None, model_token)

    if mass < policy.min_control_mass:
        if policy.fallback == "model":
            return "no_decision", None, None
        forced = policy.categories[largest(not_off)].token_id if policy.fallback == "refuse" and not_off else None
        return "no_decision", None, policy.respond_token_id if forced is None else forced

    if policy.rule == "sum":
        over = bool(not_off) and float(q[not_off].sum()) >= policy.sum_threshold
        return refuse(largest(not_off)) if over else respond

    best_of_all = largest([*every, len(every)])
    passing = [i for i in not_off if i == best_of_all if values[i] == "model"]
    passing += [i for i in not_off if isinstance(value := values[i], float) and q[i] >= value]
    return refuse(largest(sorted(passing))) if passing else respond
