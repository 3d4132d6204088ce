"""A conversation as the ids of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from refusal_edge.chat_handler import Handler, HandlerTemplate
from refusal_edge.errors import InvalidRequestError
from refusal_edge.messages import Message
from refusal_edge.prompt import PromptTokenizer
from refusal_edge.template import (
    Piece,
    Span,
    build_request,
    check_unmarked,
    harmless,
    map_strings,
    segment,
    unsegmented,
)


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
        InvalidRequestError: text that is not Unicode or no JSON, a special token in a key, role or choice, a template
            that fails, that would write special tokens by what a message says, or that hides an earlier assistant turn.
    """
    request = build_request(history, **tools)
    try:
        _check_unicode([request, choices])
        check_unmarked(request, tokenizer.special_in)
    except RecursionError:
        raise InvalidRequestError("messages and tools: nested too deeply") from None
    map_strings(choices, lambda text: _check_choice(text, tokenizer))
    render = HandlerTemplate(handler, choices)
    expected = tokenizer.markers([Span(render(map_strings(request, harmless)), trusted=True)])
    pieces: Sequence[Piece] | None = segment(render, history, **tools)
    if pieces is None or tokenizer.markers(pieces) != expected:
        warn(
            "refusal-edge: this chat template hides where message text goes: special tokens in messages are broken up "
            "with zero-width spaces"
        )
        pieces = _neutralised(history, tools, render, tokenizer, expected)
    elif _n_opened(pieces) < _n_turns(history):
        warn("refusal-edge: this chat template hides where an assistant turn without text begins: no control token")
    ids = tokenizer.encode(pieces)
    return [*bos, *ids] if render.add_bos else ids


def _neutralised(
    history: Sequence[Message],
    tools: Mapping[str, Any],
    render: HandlerTemplate,
    tokenizer: PromptTokenizer,
    expected: list[int],
) -> list[Piece]:
    """A prompt that cannot be segmented, if it holds exactly the special tokens that harmless text would give it.

    Raises:
        InvalidRequestError: it does not, or an earlier turn cannot get its control token back.
    """
    messages = [replace(m, fields=map_strings(m.fields, tokenizer.neutralise)) for m in history]
    pieces = unsegmented(render, messages, **map_strings(tools, tokenizer.neutralise))
    if tokenizer.markers(pieces) != expected:
        raise InvalidRequestError(
            "messages: this chat template would write special tokens by what the text of a message says; "
            "change that text, or the template"
        )
    if _n_opened(pieces) < _n_turns(history):
        raise InvalidRequestError(
            "messages: this chat template hides where an earlier assistant turn begins, and so its control token; "
            "change the text that makes it, or the template"
        )
    return pieces


def _n_opened(pieces: Sequence[Piece]) -> int:
    return sum(isinstance(piece, int) for piece in pieces)


def _n_turns(history: Sequence[Message]) -> int:
    return sum(message.control_token_id is not None for message in history)


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
