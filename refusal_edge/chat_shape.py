"""The shape of answers: llama-cpp-python's, with OpenAI's `refusal` and our `refusal_details`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Response = dict[str, Any]


@dataclass(frozen=True)
class ChatShape:
    """How one answer is told.

    Attributes:
        refused: the answer is a refusal: its text goes to `refusal`, `content` is None.
        details: `Decision.to_dict()`, given as `refusal_details`.
        as_content: a refusal's text goes to `content` too, for clients that do not read `refusal`.
        decoded_control_token: 1 if a control token was generated before the text, else 0.
        remember: is told the text of an answer that came to its own end.
    """

    refused: bool
    details: dict[str, Any]
    as_content: bool
    decoded_control_token: int
    remember: Callable[[str], None]

    def completion(self, response: Response) -> Response:
        """A chat completion of llama-cpp-python, reshaped."""
        (choice,) = response["choices"]
        message = choice["message"]
        text = message.get("content")
        if choice["finish_reason"] == "stop":
            self.remember(text or "")
        content = text if not self.refused or self.as_content else None
        refusal = text if self.refused else None
        choice["message"] = {**message, "content": content, "refusal": refusal, "refusal_details": self.details}
        choice["logprobs"] = self._logprobs(choice.get("logprobs"))
        usage = response["usage"]
        usage["prompt_tokens"] -= self.decoded_control_token
        usage["completion_tokens"] += self.decoded_control_token
        return {**response, "refusal_details": self.details}

    def chunks(self, chunks: Iterable[Response]) -> Iterator[Response]:
        """Chunks of a stream, reshaped; the first and the last carry `refusal_details`."""
        first, text = True, ""
        for chunk in chunks:
            (choice,) = chunk["choices"]
            text += choice["delta"].get("content") or ""
            choice["delta"] = self._delta(choice["delta"], first)
            choice["logprobs"] = self._logprobs(choice.get("logprobs"))
            if first or choice["finish_reason"] is not None:
                chunk["refusal_details"] = self.details
            if choice["finish_reason"] == "stop":
                self.remember(text)
            first = False
            yield chunk

    def _delta(self, delta: dict[str, Any], first: bool) -> dict[str, Any]:
        if first:
            return {"content": None, **delta, "refusal": None}
        if not self.refused or "content" not in delta:
            return delta
        text = delta["content"]
        return {"content": text, "refusal": text} if self.as_content else {"refusal": text}

    def _logprobs(self, logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        tokens = [_plain_entry(entry) for entry in logprobs["content"]]
        content = tokens if not self.refused or self.as_content else None
        return {"content": content, "refusal": tokens if self.refused else None}


def _plain_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Upstream's numbers are NumPy's, which JSON does not know."""
    top = [{**other, "logprob": float(other["logprob"])} for other in entry["top_logprobs"]]
    return {**entry, "logprob": float(entry["logprob"]), "top_logprobs": top}


def fixed_chat(text: str, model: str, n_prompt: int, finish_reason: str) -> Response:
    """A chat completion of llama-cpp-python's shape whose text no model wrote."""
    return {
        "id": f"chatcmpl-{uuid.uuid4()}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": 0, "total_tokens": n_prompt},
    }


def fixed_chat_chunks(text: str, model: str, finish_reason: str) -> Iterator[Response]:
    """The same as a stream: the role, the text, the end."""
    head = {
        "id": f"chatcmpl-{uuid.uuid4()}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
    }
    for delta in ({"role": "assistant"}, {"content": text}, {}):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None if delta else finish_reason}
        yield {**head, "choices": [choice]}
