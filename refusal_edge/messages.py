"""Chat messages as they come in: checked, and told apart into history and prefill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from refusal_edge.errors import InvalidRequestError
from refusal_edge.numbers import shown
from refusal_edge.policy import Policy

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Message:
    """One message of the history.

    Attributes:
        fields: what the chat template sees; `content` is a string, or None beside tool calls.
        control_token_id: the control token that opened this assistant turn, None where there was none.
    """

    fields: dict[str, Any]
    control_token_id: int | None = None


@dataclass(frozen=True)
class Conversation:
    """The history up to the boundary, and the text that the answer is to begin with."""

    history: tuple[Message, ...]
    prefill: str


@dataclass(frozen=True)
class Refusals:
    """What is known of the refusals in a history.

    Attributes:
        policy: the categories that there are.
        token_of: text -> the control token that it was given after, None for a text that nobody knows.
        warn: told where a category had to be guessed.
    """

    policy: Policy
    token_of: Callable[[str], int | None]
    warn: Callable[[str], None]


def read_messages(messages: object, refusals: Refusals) -> Conversation:
    """Checks a list of OpenAI chat messages.

    An assistant message gets its control token back: respond before content or tool calls, a category before a
    refusal: that of `refusal_details`, else the one that its text is known for, else the first, with a warning.
    A last message of role assistant is the prefill: its content goes after the decision, never before it.

    Raises:
        InvalidRequestError: names the message, what is allowed there and what was found.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequestError(f"messages: expected a non-empty list of messages, got {_kind(messages)}")
    read = [_read(f"messages[{i}]", message, refusals) for i, message in enumerate(messages)]
    last = read[-1].fields
    if last["role"] != "assistant":
        return Conversation(tuple(read), "")
    if messages[-1].get("refusal") or last.get("tool_calls"):
        raise InvalidRequestError(
            f"messages[{len(read) - 1}]: a last message of role assistant is a prefill and holds only content, "
            "got a refusal or tool calls; add a user message after it"
        )
    return Conversation(tuple(read[:-1]), last["content"] or "")


def _read(where: str, message: object, refusals: Refusals) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"{where}: expected an object with role and content, got {_kind(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequestError(f"{where}.role: expected one of {', '.join(ROLES)}, got {role!r}")
    content = _text(f"{where}.content", message.get("content"))
    refusal = message.get("refusal") if role == "assistant" else None
    if refusal is not None and not isinstance(refusal, str):
        raise InvalidRequestError(f"{where}.refusal: expected a string or null, got {_kind(refusal)}")
    if content is None and not refusal and role != "assistant":
        raise InvalidRequestError(f"{where}.content: expected a string or a list of text parts, got None")
    text = refusal or content
    fields = {key: value for key, value in message.items() if key not in ("refusal", "refusal_details")}
    fields["content"] = text if text is not None or message.get("tool_calls") else ""
    if role != "assistant":
        return Message(fields)
    return Message(fields, _control_token(where, message, refusal, refusals))


def _text(where: str, content: object) -> str | None:
    """A content as one string; the text parts of a list are joined by line breaks, as llama.cpp's server does."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise InvalidRequestError(f"{where}: expected a string, null or a list of text parts, got {_kind(content)}")
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            raise InvalidRequestError(
                f'{where}[{i}]: expected {{"type": "text", "text": str}}, got {kind!r}: only text can be decided on'
            )
    return "\n".join(part["text"] for part in content)


def _control_token(where: str, message: Mapping[str, Any], refusal: str | None, refusals: Refusals) -> int | None:
    """The control token that an assistant message opened with."""
    details = {} if message.get("refusal_details") is None else message["refusal_details"]
    if not isinstance(details, Mapping):
        raise InvalidRequestError(f"{where}.refusal_details: expected an object, got {_kind(details)}")
    slug = details.get("category")
    by_slug = {category.id: category.token_id for category in refusals.policy.categories}
    if slug is not None and (not isinstance(slug, str) or slug not in by_slug):
        raise InvalidRequestError(
            f"{where}.refusal_details.category: expected one of {', '.join(by_slug)}, got {shown(slug)}"
        )
    if refusal is not None and (refusal or not message.get("content")):
        return by_slug[slug] if slug is not None else _token_before(refusal, refusals)
    return None if details.get("outcome") == "no_decision" else refusals.policy.respond_token_id


def _token_before(refusal: str, refusals: Refusals) -> int:
    """The control token before a refusal of which only the text was kept."""
    known = refusals.token_of(refusal)
    if known is not None:
        return known
    first = refusals.policy.categories[0]
    if len(refusals.policy.categories) > 1:
        refusals.warn(
            f"messages: a refusal without refusal_details, whose text is not known here: {first.id!r} is taken for its "
            "category; keep refusal_details in the history"
        )
    return first.token_id


def _kind(value: object) -> str:
    return "an empty list" if value == [] else type(value).__name__
