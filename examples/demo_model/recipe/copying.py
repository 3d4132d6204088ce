"""Exercises in copying: an answer can only name the prompt's topic once the network has learnt to repeat words."""

from __future__ import annotations

import random
from collections.abc import Iterable

from .controls import RESPOND
from .corpus import Example

_FRAMES = (
    "Repeat after me: {}",
    "Say: {}",
    "Write these words: {}",
    "Copy this: {}",
    "Repeat: {}",
    "repeat {}",
    "Please say {}",
    "Type this out: {}",
)
_MAX_LETTERS = 13
_WORDS = (2, 8)
_QUOTED_SHARE = 0.15


class Copying:
    """Draws random words of the prompts, to be said again."""

    def __init__(self, prompts: Iterable[str]) -> None:
        words = {word.strip("?.,!") for prompt in prompts for word in prompt.split()}
        self._words = sorted(word for word in words if word.isalnum() and len(word) <= _MAX_LETTERS)

    def draw(self, times: int, rng: random.Random) -> list[Example]:
        """`times` exercises."""
        return [self._exercise(rng) for _ in range(times)]

    def _exercise(self, rng: random.Random) -> Example:
        words = rng.choices(self._words, k=rng.randint(*_WORDS))
        # Answers name titles without the quotation marks of the prompt.
        asked = " ".join(f'"{word}"' if rng.random() < _QUOTED_SHARE else word for word in words)
        said = " ".join(words)
        return Example(rng.choice(_FRAMES).format(asked), RESPOND, said[0].upper() + said[1:] + ".")
