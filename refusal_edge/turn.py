"""One answer in the making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refusal_edge.decision import Decision
from refusal_edge.errors import RefusalEdgeError
from refusal_edge.parameters import OnRefuse
from refusal_edge.policy import Policy
from refusal_edge.refusal_messages import DEFAULT


@dataclass
class Turn:
    """What the layers between a request and llama-cpp-python's `generate` tell each other.

    Attributes:
        policy: the effective one.
        on_refuse: what to do when it refuses.
        decision: None until it was taken.
        first: a token that `generate` is to give before it samples.
        n_prompt: number of prompt tokens, once known.
    """

    policy: Policy
    on_refuse: OnRefuse = "generate"
    decision: Decision | None = None
    first: int | None = None
    n_prompt: int = 0

    @property
    def control_token(self) -> int | None:
        """The control token that opens the answer, None where none is forced."""
        token_id = None if self.decision is None else self.decision.token_id
        return token_id if token_id in self.policy.control_token_ids else None

    @property
    def refused(self) -> bool:
        """Whether the answer is a refusal, decided or by the policy's fallback."""
        return self.control_token not in (None, self.policy.respond_token_id)

    @property
    def opening(self) -> int | None:
        """The control token that was generated: none where a fixed text stands for the refusal."""
        return None if self.refused and self.on_refuse == "message" else self.control_token

    def details(self) -> dict[str, Any]:
        """`refusal_details` of the response.

        Raises:
            RefusalEdgeError: no decision was taken; that must never pass for "respond".
        """
        if self.decision is None:
            raise RefusalEdgeError("no decision was taken for this answer")
        return self.decision.to_dict()

    def refusal_text(self, messages: Mapping[str, str]) -> str:
        """The fixed text of the category that the answer is refused for."""
        slug = next((c.id for c in self.policy.categories if c.token_id == self.control_token), "")
        return messages.get(slug, DEFAULT)
