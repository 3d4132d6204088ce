"""The `refusal-edge` executable: one module per command, one place where errors become one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
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
SIGNAL_EXIT = 128
"""A shell's exit code for a signal, less its number."""


class Terminated(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does, so that what it has begun to write is removed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Bad input gives one line on stderr and exit code 2, never a traceback."""
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal gets \xb7, not a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals_interrupt(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            args = build_parser().parse_args(argv)
            return int(args.run(args))
    except (RefusalEdgeError, OSError) as error:
        return fail(error)
    except RuntimeError as error:
        if not str(error).startswith("llama_"):  # llama-cpp-python: "llama_decode returned 1"
            raise
        return fail(RuntimeError(f"llama.cpp cannot go on: {error}; a smaller --n-ctx needs less memory"))
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # after SIGHUP, nobody may be there to read it
            print("interrupted", file=sys.stderr)
        return SIGNAL_EXIT + (stop.number if isinstance(stop, Terminated) else signal.SIGINT)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line, without the place in the source that Python shows."""
    terminal.warn(str(message))


def _replace_closed_streams() -> None:
    """`>&-` leaves None for a stream, and its number to the next file that is opened, into which C would print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for good)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt, unless whoever started this program has decided otherwise (nohup)."""

    def interrupt(number: int, _: object) -> None:
        raise Terminated(number)

    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def fail(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):  # `refusal-edge inspect model.gguf | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"refusal-edge: error: {terminal.printable(' '.join(terminal.in_flags(text).split()))}", file=sys.stderr)
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
