"""The C library as Python functions: no arithmetic here, only types and errors.

Samplers and contexts are plain integer addresses, so that they mix with llama_cpp's ctypes pointers:
`ctypes.cast(address, llama_cpp.llama_sampler_p_ctypes)`. Functions on samplers need
`refusal_edge.host.bind()` first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from refusal_edge._native._redge import ffi, lib
from refusal_edge._native.status import check
from refusal_edge.decision import Decision, Outcome
from refusal_edge.errors import InvalidLogitsError
from refusal_edge.policy import FALLBACKS, RULES, SCORES, THRESHOLD_CODES, ControlValue, Policy

__all__ = [
    "decide",
    "ffi",
    "isa_active",
    "isa_available",
    "isa_force",
    "isa_names",
    "lib",
    "policy_struct",
    "sampler_decision",
    "sampler_init",
    "sampler_sample",
    "sampler_set_policy",
]

Phase = Literal["decide", "guard"]

_PHASES: Final[dict[Phase, int]] = {"decide": lib.REDGE_PHASE_DECIDE, "guard": lib.REDGE_PHASE_GUARD}
_OUTCOMES: Final[dict[int, Outcome]] = {
    lib.REDGE_REFUSE: "refuse",
    lib.REDGE_RESPOND: "respond",
    lib.REDGE_NO_DECISION: "no_decision",
}


def decide(logits: npt.NDArray[np.float32], policy: Policy, *, calibrated: bool = False) -> Decision:
    """The rule on raw float32 logits of shape (n_vocab,); a contiguous float32 array is read in place.

    Raises:
        InvalidLogitsError: wrong shape, NaN or +Inf, no finite control logit, a control id out of range.
    """
    row = np.ascontiguousarray(logits, dtype=np.float32)
    if row.ndim != 1 or not 0 < row.size < 2**31:
        raise InvalidLogitsError(f"logits: expected shape (n_vocab,), got {np.shape(logits)}")
    raw = ffi.new("redge_decision *")
    check(lib.redge_decide_f32(ffi.from_buffer("float[]", row), row.size, policy_struct(policy), raw))
    return _decision(raw, policy, calibrated)


def sampler_init(policy: Policy, n_vocab: int, phase: Phase = "decide") -> int:
    """Address of a new `llama_sampler`; the caller frees it (`llama_sampler_free`) unless a chain owns it.

    Raises:
        InvalidPolicyError, InvalidLogitsError: the policy does not fit a vocabulary of n_vocab tokens.
        HostError: `refusal_edge.host.bind()` was not called.
    """
    options = ffi.new("redge_sampler_options *", {"phase": _PHASES[phase], "n_vocab": n_vocab})
    status = ffi.new("redge_status *")
    sampler = lib.redge_sampler_init(policy_struct(policy), options, status)
    check(status[0])
    return int(ffi.cast("uintptr_t", sampler))


def sampler_decision(sampler: int, policy: Policy, *, calibrated: bool = False) -> Decision:
    """What the sampler (or the chain that holds it) at this address decided under `policy`.

    Raises:
        InvalidLogitsError: the logits could not be decided on.
        RefusalEdgeError: no decision was made; never to be taken for "respond".
    """
    raw = ffi.new("redge_decision *")
    check(lib.redge_sampler_decision(_sampler(sampler), raw))
    return _decision(raw, policy, calibrated)


def sampler_set_policy(sampler: int, policy: Policy) -> None:
    """Gives a live sampler another policy over the same control tokens, from its next decision on.

    Raises:
        InvalidPolicyError: other control tokens.
    """
    check(lib.redge_sampler_set_policy(_sampler(sampler), policy_struct(policy)))


def sampler_sample(chain: int, context: int, index: int = -1) -> int:
    """Samples and accepts a token as `llama_sampler_sample` does: the same one for the same logits and seed.

    Raises:
        InvalidLogitsError: the logits could not be decided on.
        RefusalEdgeError: no logits at this index, or every candidate is masked.
    """
    status = ffi.new("redge_status *")
    token: int = lib.redge_sampler_sample(_sampler(chain), ffi.cast("struct llama_context *", context), index, status)
    check(status[0])
    return token


def isa_names() -> tuple[str, ...]:
    """Instruction sets compiled in, from plain to best."""
    names: list[str] = []
    while (name := lib.redge_isa_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return tuple(names)


def isa_available(name: str) -> bool:
    """Whether this machine can run that instruction set's kernels."""
    return bool(lib.redge_isa_available(name.encode()))


def isa_active() -> str:
    """The instruction set in use ("unusable" if REFUSAL_EDGE_ISA names one that cannot run)."""
    return str(ffi.string(lib.redge_isa_active()).decode())


def isa_force(name: str | None) -> None:
    """Forces an instruction set for the whole process; None returns to the best one.

    Raises:
        RefusalEdgeError: unknown, or this machine cannot run it.
    """
    check(lib.redge_isa_force(ffi.NULL if name is None else name.encode()))


@lru_cache(maxsize=256)
def policy_struct(policy: Policy) -> Any:
    """The policy as a `redge_policy *`; cached, read-only by convention.

    Raises:
        InvalidPolicyError: C finds fault with it (a `Policy` was checked already, so this should not happen).
    """
    raw = ffi.new("redge_policy *")
    lib.redge_policy_default(raw)
    raw.rule = RULES.index(policy.rule)
    raw.score = SCORES.index(policy.score)
    raw.fallback = FALLBACKS.index(policy.fallback)
    raw.temperature = policy.temperature
    raw.min_control_mass = policy.min_control_mass
    raw.sum_threshold = policy.sum_threshold
    raw.respond_token_id = policy.respond_token_id
    raw.n_categories = len(policy.categories)
    for i, category in enumerate(policy.categories):
        raw.token_ids[i] = category.token_id
        raw.thresholds[i] = _threshold(category.threshold)
    check(lib.redge_policy_validate(raw, 0))
    return raw


def _threshold(value: ControlValue) -> float:
    return THRESHOLD_CODES[value] if isinstance(value, str) else value


def _sampler(address: int) -> Any:
    return ffi.cast("struct llama_sampler *", address)


def _decision(raw: Any, policy: Policy, calibrated: bool) -> Decision:
    slugs = [category.id for category in policy.categories]
    return Decision(
        outcome=_OUTCOMES[raw.outcome],
        category=None if raw.category < 0 else slugs[raw.category],
        token_id=None if raw.token_id < 0 else raw.token_id,
        scores=dict(zip(slugs, raw.scores)),
        respond_score=raw.respond_score,
        control_mass=raw.control_mass,
        thresholds=policy.thresholds,
        model_token_id=raw.model_token_id,
        policy_id=policy.policy_id,
        calibrated=calibrated,
        logits=dict(zip(slugs, raw.logits)),
        respond_logit=raw.respond_logit,
        log_normalizer=raw.log_normalizer,
    )
