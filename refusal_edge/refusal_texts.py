"""Whose refusal a text is: a client that keeps only the text of an answer gets the control token before it back."""

from __future__ import annotations

from typing import Final

CAPACITY: Final = 256


class RefusalTexts:
    """Text -> control token of the last refusals that were given; white space around a text does not count."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._tokens: dict[str, int] = {}

    def get(self, text: str) -> int | None:
        """The control token that the text came after, if it is still known."""
        return self._tokens.get(text.strip())

    def put(self, text: str, token_id: int) -> None:
        """Remembers a refusal; a text without letters is nobody's."""
        if not (key := text.strip()):
            return
        self._tokens.pop(key, None)
        self._tokens[key] = token_id
        while len(self._tokens) > self._capacity:
            self._tokens.pop(next(iter(self._tokens)))
