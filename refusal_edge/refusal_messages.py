"""The fixed texts of `on_refuse="message"`: what a refusal says when the model does not write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from refusal_edge.errors import InvalidRequestError
from refusal_edge.numbers import is_unicode, shown
from refusal_edge.policy import Category

DEFAULT: Final = "I can't help with that."
BY_CATEGORY: Final[Mapping[str, str]] = {
    "humanizing": "I'm a language model: I have no feelings, body or life of my own to tell you about.",
    "incomplete": "Your request is missing something I need. Please add it and ask again.",
    "indeterminate": "There is no single settled answer to that question.",
    "safety": "I can't help with that, because it could cause harm.",
    "unsupported": "That is beyond what I can do here.",
}


def default_messages(categories: tuple[Category, ...]) -> dict[str, str]:
    """Slug -> text for each category."""
    return {category.id: BY_CATEGORY.get(category.id, DEFAULT) for category in categories}


def check_messages(messages: object, categories: tuple[Category, ...]) -> dict[str, str]:
    """A copy of a mapping from some of the categories to texts.

    Raises:
        InvalidRequestError: something else, an unknown category, or a text that would not show as a refusal.
    """
    if not isinstance(messages, Mapping):
        raise InvalidRequestError(f"refusal_messages: expected an object of category -> text, got {shown(messages)}")
    slugs = [category.id for category in categories]
    for slug, text in messages.items():
        if slug not in slugs:
            raise InvalidRequestError(
                f"refusal_messages: unknown category {shown(slug)}: this model has {', '.join(slugs)}"
            )
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            raise InvalidRequestError(f"refusal_messages: {slug}: expected a text that is not empty, got {shown(text)}")
    return dict(messages)
