"""Where a decision is taken: on the CPU, from raw logits, or inside the graph of the backend that computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import llama_cpp

from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidRequestError
from refusal_edge.policy import Policy
from refusal_edge.sampling import decision_chain

Placement = Literal["cpu", "backend", "auto"]
PLACEMENTS: Final = get_args(Placement)
_SEQUENCE: Final = 0
_IN_GRAPH: Final = b"+"  # begins the name of a sampler that the device can run


def check_placement(placement: object) -> None:
    """Raises InvalidRequestError if it is none of `PLACEMENTS`."""
    if placement not in PLACEMENTS:
        raise InvalidRequestError(f"placement: expected one of {', '.join(PLACEMENTS)}, got {placement!r}")


def has_graph(policy: Policy) -> bool:
    """Whether the policy's rule can run on a backend: the free argmax of "paper-category" may be any token at all."""
    return policy.rule != "paper-category"


def decide_on_backend(
    ctx: Any, decode: Callable[[], None], policy: Policy, n_vocab: int, *, calibrated: bool
) -> Decision | None:
    """Decides by `policy` in the graph of `decode`'s last output, in sequence 0; `decode` must decode something.

    The context holds no raw logits of that output afterwards: its last token must be decoded again before anything is
    sampled from it. `refusal_edge.host.bind()` must have been called, and `has_graph(policy)` be true.

    Returns: None, with nothing decoded, if the library has no backend samplers or the device lacks an operation.

    Raises:
        InvalidLogitsError: the logits could not be decided on.
        RefusalEdgeError: the graph that ran did not hold the rule: no decision was made.
    """
    chain = decision_chain(policy, n_vocab)  # a new one each time: llama.cpp aborts when a chain is attached twice
    try:
        if not _attach(ctx, chain.sampler):
            return None
        decode()
        return chain.finish(ctx, policy, calibrated=calibrated)
    finally:
        _set_sampler(ctx, None)
        chain.close()


def _attach(ctx: Any, chain: Any) -> bool:
    head = llama_cpp.llama_sampler_chain_get(chain, 0)
    return _set_sampler(ctx, chain) and llama_cpp.llama_sampler_name(head).startswith(_IN_GRAPH)


def _set_sampler(ctx: Any, chain: Any) -> bool:
    set_sampler = getattr(llama_cpp, "llama_set_sampler", None)
    return set_sampler is not None and bool(set_sampler(ctx.ctx, _SEQUENCE, chain))
