"""The shape of raw completions: llama-cpp-python's, without a trace of the control token, with `refusal_details`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator

from refusal_edge.chat_shape import Response
from refusal_edge.turn import Turn


def completion(response: Response, turn: Turn) -> Response:
    """A text completion, with the control token left out of its logprobs."""
    logprobs = response["choices"][0]["logprobs"]
    if logprobs is not None and turn.opening is not None:
        at = max(0, len(logprobs["tokens"]) - response["usage"]["completion_tokens"])
        for values in logprobs.values():
            del values[at]
    return {**response, "refusal_details": turn.details()}


def chunks(stream: Iterable[Response], turn: Turn) -> Iterator[Response]:
    """Chunks of a stream; the empty one of the control token is left out, the first and the last carry the details."""
    first, hidden = True, False
    for chunk in stream:
        finish_reason = chunk["choices"][0]["finish_reason"]
        if not hidden and turn.opening is not None and finish_reason is None:
            hidden = True
            continue
        if first or finish_reason is not None:
            chunk["refusal_details"] = turn.details()
        first = False
        yield chunk


def fixed_completion(text: str, model: str, n_prompt: int, stream: bool) -> Iterator[Response]:
    """A text completion whose text no model wrote: one response, or two chunks."""
    head: Response = {
        "id": f"cmpl-{uuid.uuid4()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": None if stream else "stop"}
    if not stream:
        usage = {"prompt_tokens": n_prompt, "completion_tokens": 0, "total_tokens": n_prompt}
        yield {**head, "choices": [choice], "usage": usage}
        return
    yield {**head, "choices": [choice]}
    yield {**head, "choices": [{**choice, "text": "", "finish_reason": "stop"}]}
