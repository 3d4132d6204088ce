"""JSON from files that strangers wrote: bounded in size, one object at the top, no key twice, no NaN."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from refusal_edge.errors import FormatError

MAX_BYTES = 16 << 20

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(text: str | bytes, source: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        FormatError: not JSON, not an object, nested too deep, a key twice in one object, NaN or Infinity.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FormatError(f"{source}: key {shown(twice)} appears twice in one object; the file is ambiguous")
        return table

    def no_constant(name: str) -> Any:
        raise FormatError(f"{source}: {name} is not a JSON number")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{source}: not valid JSON ({error})") from None
    except RecursionError:
        raise FormatError(f"{source}: JSON nested too deep") from None
    except FormatError:
        raise
    except ValueError as error:  # an integer with more digits than Python is willing to read
        raise FormatError(f"{source}: {error}") from None
    if _ESCAPED_SURROGATE.search(text.encode() if isinstance(text, str) else text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise FormatError(f"{source}: half of a surrogate pair is not text") from None
    if not isinstance(value, dict):
        raise FormatError(f"{source}: expected a JSON object, got {type(value).__name__}")
    return value


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in the file `path`, of at most `max_bytes`.

    Raises:
        FormatError: the file is missing, too large, or not what `parse_object` accepts.
    """
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    size = path.stat().st_size
    if size > max_bytes:
        raise FormatError(f"{path}: {size} bytes, at most {max_bytes} allowed")
    return parse_object(path.read_bytes(), str(path))


def shown(name: object, limit: int = 80) -> str:
    """`name` as one printable line of at most `limit` characters, for use inside an error message."""
    text = repr(name)
    return text if len(text) <= limit else text[: limit - 3] + "..."
