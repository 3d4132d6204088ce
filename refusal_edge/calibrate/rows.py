"""Prompts, one JSON object a line: checked once in full, then streamed in constant memory.

{"id": "17", "prompt": "How do I ...?", "label": "refuse", "category": "safety"}
{"messages": [{"role": "user", "content": "..."}], "label": "respond"}
{"prompt": "..."}
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from refusal_edge.errors import InvalidRequestError

LABELS: Final = ("refuse", "respond")
MAX_LINE_BYTES: Final = 16 << 20
MAX_ID_CHARACTERS: Final = 1024
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One prompt.

    Attributes:
        line: 1-based line of the file; orders rows and names them in errors.
        id: the row's own, or None.
        messages: chat messages; a `prompt` is one user message.
        label: "refuse" or "respond", what the model should do; None: not known.
        category: slug the row belongs to (a respond row: the kind of refusal it is nearly asking for), or None.
        sha256: hex digest of messages, label and category.
    """

    line: int
    id: str | None
    messages: list[dict[str, Any]]
    label: str | None
    category: str | None
    sha256: str

    @property
    def name(self) -> str:
        """The id, or "L<line>"."""
        return f"L{self.line}" if self.id is None else self.id


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be scored, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class DataFile:
    """A data file that has been read through once: every row is known to be good, or to be skipped.

    Attributes:
        n_rows: rows that can be scored.
        bad: line -> reason, of the rows that `skip_bad` leaves out.
        sha256: hex digest over the digests of the good rows, in order.
    """

    path: Path
    categories: tuple[str, ...] | None
    n_rows: int
    bad: dict[int, str]
    sha256: str

    @classmethod
    def check(cls, path: str | Path, categories: Collection[str] | None = None, *, skip_bad: bool = False) -> DataFile:
        """Reads the whole file once; 8 bytes of memory a row.

        Args:
            categories: slugs that a row may name; None allows any.
            skip_bad: leave bad rows out, and count them in `bad`, instead of raising at the first.

        Raises:
            InvalidRequestError: a bad row (file, line and reason), an empty file, or no good row at all.
        """
        path = Path(path)
        known = None if categories is None else tuple(categories)
        bad: dict[int, str] = {}
        ids, digest, n_rows = array("Q"), hashlib.sha256(), 0
        for line, text in _lines(path):
            try:
                row = parse_row(text, line, known)
            except InvalidRequestError as error:
                _reject(path, line, str(error), bad, skip_bad)
                continue
            if row.id is not None:
                ids.append(_short_hash(row.id))
            digest.update(bytes.fromhex(row.sha256))
            n_rows += 1
        if not n_rows:
            reason = f"all {len(bad)} rows are bad" if bad else "the file is empty"
            raise InvalidRequestError(f"{path}: expected at least one row, but {reason}")
        data = cls(path, known, n_rows, bad, digest.hexdigest())
        values, counts = np.unique(np.frombuffer(ids, np.uint64), return_counts=True)
        return data._without_duplicates(set(values[counts > 1].tolist()), skip_bad)

    def _without_duplicates(self, suspects: set[int], skip_bad: bool) -> DataFile:
        """Reads again only if two ids share a hash, and then remembers only those."""
        if not suspects:
            return self
        first_line: dict[str, int] = {}
        digest, n_rows, bad = hashlib.sha256(), 0, dict(self.bad)
        for row in self:
            if row.id is not None and _short_hash(row.id) in suspects:
                first = first_line.setdefault(row.id, row.line)
                if first != row.line:
                    _reject(self.path, row.line, f"id {row.id!r} was used on line {first} already", bad, skip_bad)
                    continue
            digest.update(bytes.fromhex(row.sha256))
            n_rows += 1
        return dataclasses.replace(self, n_rows=n_rows, bad=bad, sha256=digest.hexdigest())

    @property
    def n_all(self) -> int:
        """Rows, good and bad."""
        return self.n_rows + len(self.bad)

    def n_rows_up_to(self, last_line: int, shard: tuple[int, int]) -> int:
        """Rows of a shard, good and bad, up to a line of the file."""
        index, count = shard
        n_before = sum(1 for _ in itertools.takewhile(lambda item: item[0] <= last_line, _lines(self.path)))
        return len(range(index - 1, n_before, count))

    def __iter__(self) -> Iterator[Row]:
        """The good rows, in order."""
        return (row for row in self.all_rows() if isinstance(row, Row))

    def all_rows(self, after_line: int = 0, shard: tuple[int, int] = (1, 1)) -> Iterator[Row | BadRow]:
        """Good and bad rows behind `after_line`, in order; of shard (i, n) every n-th, beginning with the i-th row."""
        index, count = shard
        for number, (line, text) in enumerate(_lines(self.path)):
            if line > after_line and number % count == index - 1:
                yield BadRow(line, self.bad[line]) if line in self.bad else parse_row(text, line, self.categories)


def parse_row(text: bytes, line: int, categories: Collection[str] | None = None) -> Row:
    """One line as a row.

    Raises:
        InvalidRequestError: the reason alone, without file and line.
    """
    data = _json_object(text, line)
    messages = _messages(data)
    label = data.get("label")
    if label is not None and not (isinstance(label, str) and label in LABELS):
        raise InvalidRequestError(f'label: expected "refuse", "respond" or null, got {_short(label)}')
    category = data.get("category")
    if category is not None and not (isinstance(category, str) and category):
        raise InvalidRequestError(f"category: expected a slug or null, got {_short(category)}")
    if category is not None and categories is not None and category not in categories:
        raise InvalidRequestError(f"category: expected one of {', '.join(categories)}, got {_short(category)}")
    row_id = _row_id(data.get("id"))
    try:
        content = json.dumps([messages, label, category], ensure_ascii=False, sort_keys=True).encode()
        (row_id or "").encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("text: expected valid Unicode, got an unpaired surrogate") from None
    return Row(line, row_id, messages, label, category, hashlib.sha256(content).hexdigest())


def _row_id(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or len(text := str(value)) > MAX_ID_CHARACTERS:
        raise InvalidRequestError(
            f"id: expected a string of at most {MAX_ID_CHARACTERS} characters or null, got {_short(value)}"
        )
    return text


def _json_object(text: bytes, line: int) -> dict[str, Any]:
    if len(text) > MAX_LINE_BYTES:
        raise InvalidRequestError(f"expected a line of at most {MAX_LINE_BYTES} bytes, got more")
    if text.startswith(_BOM):
        raise InvalidRequestError("starts with a byte order mark; save the file as UTF-8 without one")
    try:
        data = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"expected UTF-8, got byte 0x{text[error.start]:02x} at {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"broken JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequestError(f"expected a JSON object, got {_short(data)}")
    return data


def _messages(data: dict[str, Any]) -> list[dict[str, Any]]:
    if ("prompt" in data) == ("messages" in data):
        found = "both" if "prompt" in data else "neither"
        raise InvalidRequestError(f'expected either "prompt" or "messages", got {found}')
    if "prompt" in data:
        if not isinstance(data["prompt"], str) or not data["prompt"].strip():
            raise InvalidRequestError(f"prompt: expected a non-empty string, got {_short(data['prompt'])}")
        return [{"role": "user", "content": data["prompt"]}]
    messages = data["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(f"messages: expected a non-empty list, got {_short(messages)}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequestError(f"messages[{i}]: expected an object with role and content, got {_short(message)}")
        if not isinstance(message.get("content"), str):
            raise InvalidRequestError(f"messages[{i}].content: expected a string, got {_short(message.get('content'))}")
    return messages


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        line = 0
        while text := file.readline(MAX_LINE_BYTES + 1):
            line += 1
            while len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):  # skip the rest of an endless line
                if not (rest := file.readline(MAX_LINE_BYTES)) or rest.endswith(b"\n"):
                    break
            if text.strip():
                yield line, text


def _reject(path: Path, line: int, reason: str, bad: dict[int, str], skip_bad: bool) -> None:
    if not skip_bad:
        raise InvalidRequestError(f"{path}: line {line}: {reason} (--skip-bad leaves such rows out)")
    bad[line] = reason


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
