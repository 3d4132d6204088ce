"""Answers for rows that have no written one: by the kind of question, with words taken from the prompt.

The kinds and their answers are in `answers/kinds.json`; prompts stay in the data folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .person import second_person

_MAX_PROMPT_CHARACTERS = 140
_MAX_ANSWER_WORDS = 34
_MAX_TOPIC_WORDS = 9
_CLAUSE = re.compile(r"[,;:]| (?:where|while|which|who|that|because|after|but|by|when|highlighting|including) ")


@dataclass(frozen=True)
class Kinds:
    """Question patterns with answer frames, and advice by the words of a question."""

    questions: Sequence[tuple[re.Pattern[str], str]]
    tails: Sequence[tuple[Sequence[str], str]]

    def answer(self, prompt: str) -> str | None:
        """An answer to a plain one-line question of a known kind, else None."""
        text = prompt.strip().strip('"').rstrip("?.! ")
        if "\n" in text or len(text) > _MAX_PROMPT_CHARACTERS:
            return None
        for pattern, frame in self.questions:
            match = pattern.fullmatch(text)
            if match is not None:
                answer = frame.format(**self._values(match.groupdict()))
                return answer if len(answer.split()) <= _MAX_ANSWER_WORDS else None
        return None

    def _values(self, groups: dict[str, str]) -> dict[str, str]:
        values = {name: second_person(text) for name, text in groups.items()}
        if "short" in values:
            values["short"] = " ".join(_CLAUSE.split(values["short"])[0].split()[:_MAX_TOPIC_WORDS])
        if "act" in values:
            act = values["act"].lower()
            values["tail"] = next(tail for words, tail in self.tails if any(f" {word}" in f" {act} " for word in words))
        return values


def read_kinds(path: Path) -> Kinds:
    """Read the kinds of questions."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return Kinds(
        [(re.compile(entry["pattern"], re.IGNORECASE), entry["answer"]) for entry in entries["questions"]],
        [(entry["words"], entry["tail"]) for entry in entries["tails"]],
    )
