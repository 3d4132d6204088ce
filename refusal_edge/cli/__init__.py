"""The `refusal-edge` executable: one module per command, one place where errors become one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from refusal_edge.cli import terminal
from refusal_edge.errors import RefusalEdgeError

COMMANDS = (
    "demo",
    "convert",
    "annotate",
    "inspect",
    "decide",
    "chat",
    "score",
    "calibrate",
    "report",
    "drift",
    "bench",
    "doctor",
)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Bad input gives one line on stderr and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal gets \xb7, not a traceback
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (RefusalEdgeError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def fail(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):  # `refusal-edge inspect model.gguf | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    print(f"refusal-edge: error: {terminal.printable(' '.join(text.split()))}", file=sys.stderr)
    return EXIT_BAD_INPUT


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refusal-edge",
        description="Control what a refusal-token model refuses, on your own machine.",
        epilog="Start with `refusal-edge demo`. Each command explains itself: `refusal-edge convert --help`.",
    )
    parser.add_argument("--version", action="version", version=f"refusal-edge {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"refusal_edge.cli.{name}")
        _add(commands, name, module)
    return parser


def _add(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, module: ModuleType) -> None:
    command = commands.add_parser(
        name,
        help=module.SUMMARY,
        description=module.SUMMARY,
        epilog=f"examples:\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    command.set_defaults(run=module.run)


def _version() -> str:
    from importlib.metadata import version

    return version("refusal-edge")
