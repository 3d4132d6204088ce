"""A conversation as the ids of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refusal_edge.chat_handler import Handler, HandlerTemplate
from refusal_edge.errors import InvalidRequestError
from refusal_edge.messages import Message
from refusal_edge.prompt import PromptTokenizer
from refusal_edge.template import Piece, Span, build_request, check_unmarked, map_strings, segment


def encode_history(
    history: Sequence[Message],
    handler: Handler,
    tokenizer: PromptTokenizer,
    bos: Sequence[int],
    tools: Mapping[str, Any],
    choices: Mapping[str, Any],
    warn: Callable[[str], None],
) -> list[int]:
    """Ids up to the boundary: the position at which the answer's control token belongs.

    Args:
        bos: the beginning-of-sequence token, if the vocabulary wants one where the template writes none.
        tools: `tools` and `functions`, whose strings are as little trusted as those of messages.
        choices: `tool_choice` and `function_call`.
        warn: told when the template cannot be segmented.

    Raises:
        InvalidRequestError: text that is not Unicode, a special token in a key, role or choice, a template that fails.
    """
    request = build_request(history, **tools)
    try:
        _check_unicode([request, choices])
        check_unmarked(request, tokenizer.special_in)
    except RecursionError:
        raise InvalidRequestError("messages and tools: nested too deeply") from None
    map_strings(choices, lambda text: _check_choice(text, tokenizer))
    render = HandlerTemplate(handler, choices)
    pieces: Sequence[Piece] | None = segment(render, history, **tools)
    if pieces is None:
        warn(
            "refusal-edge: this chat template hides where message text goes: special tokens in messages are broken up "
            "with zero-width spaces, and earlier turns lack their control tokens"
        )
        pieces = [Span(render(map_strings(request, tokenizer.neutralise)), trusted=True)]
    ids = tokenizer.encode(pieces)
    return [*bos, *ids] if render.add_bos else ids


def _check_unicode(value: Any) -> None:
    def check(text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"messages and tools: expected Unicode text, got a lone surrogate: {error}"
            ) from None
        return text

    map_strings(value, check)


def _check_choice(text: str, tokenizer: PromptTokenizer) -> str:
    if (token := tokenizer.special_in(text)) is not None:
        raise InvalidRequestError(f"tool_choice: may not hold the token {token!r}")
    return text
