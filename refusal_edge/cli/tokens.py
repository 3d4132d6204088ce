"""What `convert` and `annotate` share: arguments for control tokens, how to say what text reaches, a bar for bytes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

REACHABLE: Final = {
    "never": "no text becomes a control token (tested in llama.cpp)",
    "special": "text becomes a control token where special tokens are parsed, as chat front ends do",
    "text": "text becomes a control token, in any prompt",
}


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    """--preset, --token, --token-type."""
    parser.add_argument(
        "--preset", metavar="NAME", help="control tokens to expect: coconot-5 or single (default: find them)"
    )
    parser.add_argument(
        "--token",
        dest="tokens",
        action="append",
        default=[],
        metavar="ROLE=ID|TEXT",
        help="a control token; ROLE is respond, a category, or CATEGORY:TITLE; repeatable",
    )
    parser.add_argument(
        "--token-type",
        default="sealed",
        metavar="TYPE",
        help="sealed (default: no text becomes a control token), control or user",
    )


@contextmanager
def bytes_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error for (bytes written, bytes in all)."""
    from tqdm import tqdm

    with tqdm(desc=description, unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def advance(written: int, total: int) -> None:
            bar.total = total
            bar.update(written - bar.n)

        yield advance
