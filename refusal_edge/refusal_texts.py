"""Whose refusal a text is: a client that keeps only the text of a refusal gets the control token before it back."""

from __future__ import annotations

import threading
from typing import Final

CAPACITY: Final = 256


class RefusalTexts:
    """Text -> control token of the last refusals that were given; white space around a text does not count."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._tokens: dict[str, int | None] = {}
        self._lock = threading.RLock()  # a stream may end in any thread

    def get(self, text: str) -> int | None:
        """The control token that the text came after; None if that is not known, or more than one was."""
        return self._tokens.get(text.strip())

    def put(self, text: str, token_id: int) -> None:
        """Remembers a refusal; a text without letters is nobody's."""
        if not (key := text.strip()):
            return
        with self._lock:
            known = self._tokens.pop(key, token_id)
            self._tokens[key] = token_id if known == token_id else None
            while len(self._tokens) > self._capacity:
                self._tokens.pop(next(iter(self._tokens)))
