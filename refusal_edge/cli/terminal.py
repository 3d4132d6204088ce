"""Plain-text tables, bars and one-line messages for a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence

FLAGS = {
    "n_ctx": "--n-ctx",
    "n_gpu_layers": "--n-gpu-layers",
    "n_threads": "--threads",
    "verbose=True": "--verbose",
}
"""Arguments of the Python API, which its errors name, as the command line calls them."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def warn(message: str) -> None:
    """One line on standard error, so that standard output stays clean for machines."""
    print(f"warning: {printable(in_flags(message))}", file=sys.stderr)


def bar(fraction: float, width: int = 12) -> str:
    """A horizontal bar of `width` columns for a fraction in [0, 1]: unicode blocks, or # where they cannot be shown."""
    fraction = min(max(fraction, 0.0), 1.0)
    if not _can_show("█"):
        return ("#" * round(fraction * width)).ljust(width)
    eighths = round(fraction * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), indent: str = "  ") -> str:
    """Left-aligned columns, two spaces apart, no trailing blanks."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(map(display_width, column)) for column in zip(*lines)]
    if header:
        lines.insert(1, ["─" * w if _can_show("─") else "-" * w for w in widths])
    return "\n".join((indent + "  ".join(pad(cell, w) for cell, w in zip(line, widths))).rstrip() for line in lines)


def pad(text: str, width: int) -> str:
    return text + " " * max(0, width - display_width(text))


def display_width(text: str) -> int:
    """Terminal columns of `text`: wide characters count two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def number(value: float | str | None) -> str:
    """A threshold as people write it: 0.25, off, model; nothing for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.6g}"


def columns(default: int = 100) -> int:
    return shutil.get_terminal_size((default, 24)).columns


def printable(text: str) -> str:
    """`text` on one line with control characters escaped: untrusted text must not drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_flags(text: str) -> str:
    """An error of the Python API for somebody who typed a command."""
    return re.sub(rf"(?<![\w-])({'|'.join(FLAGS)})\b", lambda match: FLAGS[match[1]], text)


def program() -> str:
    """What to type to run this program again: its name, or its path where the shell does not find the name."""
    path = sys.argv[0]
    if os.path.basename(path) != "refusal-edge":
        return "refusal-edge"
    found = shutil.which("refusal-edge")
    return "refusal-edge" if found and os.path.exists(path) and os.path.samefile(found, path) else path


def _can_show(character: str) -> bool:
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
