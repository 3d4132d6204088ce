"""The fixed texts of `on_refuse="message"`: what a refusal says when the model does not write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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
