"""Turns words of the user into words about the user."""

from __future__ import annotations

import re

_TURNED = {
    "I am": "you are",
    "I'm": "you're",
    "I": "you",
    "my": "your",
    "My": "Your",
    "me": "you",
    "myself": "yourself",
}
_FIRST_PERSON = re.compile(r"\b(I am|I'm|I|my|My|me|myself)\b")


def second_person(text: str) -> str:
    """ "my own lock" becomes "your own lock"."""
    return _FIRST_PERSON.sub(lambda match: _TURNED[match.group(0)], text)
