"""The training examples: CoCoNot's train rows, and prompts and answers written by this project.

`answers/rows.jsonl` holds answers to rows of the data by id. `answers/written/*.jsonl` holds prompts and answers
written one by one. `answers/own/*.json` holds families: prompt frames, answer frames and the slots that both share, so
that one family gives many examples and the model learns to take the words of its answer from the prompt.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .controls import RESPOND, ROLES
from .person import second_person

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Example:
    """One exchange: `answer` is None where only the control token is to be learnt."""

    prompt: str
    control: str
    answer: str | None


@dataclass(frozen=True)
class Family:
    """Prompts and answers of one kind; every row fills the same slots.

    A {slot} is filled by the row, else by a random entry of the shared word list of that name (digits at the end tell
    two draws apart). A capitalised slot name asks for a capital letter.
    """

    control: str
    prompts: Sequence[str]
    answers: Sequence[str]
    rows: Sequence[dict[str, str]]
    times: int

    def draw(self, words: dict[str, list[str]], rng: random.Random) -> Iterator[Example]:
        """`times` examples for each row, with a prompt and an answer frame chosen at random."""
        asked = {_key(name) for prompt in self.prompts for name in _SLOT.findall(prompt)}
        for row in self.rows:
            for _ in range(self.times):
                values = dict(row)
                prompt = _fill(rng.choice(self.prompts), values, words, rng)
                # Words taken over from the user change person: "my lock" becomes "your lock".
                turned = {name: second_person(text) if name in asked else text for name, text in values.items()}
                yield Example(prompt, self.control, _fill(rng.choice(self.answers), turned, words, rng))


def _fill(frame: str, values: dict[str, str], words: dict[str, list[str]], rng: random.Random) -> str:
    """Replace every slot of `frame`; each value is expanded once and kept in `values`."""

    def value(match: re.Match[str]) -> str:
        name, key = match.group(1), _key(match.group(1))
        if key not in values:
            values[key] = rng.choice(words[key.rstrip("0123456789")])
        values[key] = _SLOT.sub(value, values[key])
        text = values[key]
        return text[0].upper() + text[1:] if name[0].isupper() else text

    return _SLOT.sub(value, frame)


def _key(name: str) -> str:
    return name[0].lower() + name[1:]


class OwnCorpus:
    """All families under `answers/own/`, and the shared word lists."""

    def __init__(self, folder: Path) -> None:
        self.words: dict[str, list[str]] = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        self.families = [
            _family(entry)
            for path in sorted((folder / "own").glob("*.json"))
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]

    def draw(self, rng: random.Random) -> list[Example]:
        """A fresh set of examples, one epoch's worth."""
        return [example for family in self.families for example in family.draw(self.words, rng)]


def read_rows(path: Path) -> list[tuple[str, Example]]:
    """Rows of one of the data files as (id, example without an answer)."""
    return [
        (row["id"], Example(row["prompt"], row["category"] if row["label"] == "refuse" else RESPOND, None))
        for row in _json_lines(path)
    ]


def read_answered_rows(data: Path, answers: Path) -> list[Example]:
    """The train rows, each with its written answer."""
    by_id = {entry["id"]: entry["answer"] for entry in _json_lines(answers / "rows.jsonl")}
    return [replace(row, answer=by_id[row_id]) for row_id, row in read_rows(data / "coconot_train.jsonl")]


def read_written(answers: Path) -> list[Example]:
    """The prompts and answers of `answers/written/`."""
    entries = [entry for path in sorted((answers / "written").glob("*.jsonl")) for entry in _json_lines(path)]
    return [Example(entry["prompt"], _control(entry["control"]), entry["answer"]) for entry in entries]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _control(name: str) -> str:
    if name not in ROLES:
        raise ValueError(f"control: expected one of {', '.join(ROLES)}, got {name!r}")
    return name


def _family(entry: dict[str, Any]) -> Family:
    slots = entry.get("slots", [])
    rows = [dict(zip(slots, [row] if isinstance(row, str) else row, strict=True)) for row in entry.get("rows", [[]])]
    return Family(_control(entry["control"]), entry["prompts"], entry["answers"], rows, entry.get("times", 1))
