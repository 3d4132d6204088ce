"""Arguments and steps that several commands share: loading a model, a policy from flags, showing a decision."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refusal_edge.cli import terminal
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidPolicyError, InvalidRequestError, MetadataError, RefusalEdgeError
from refusal_edge.policy import ControlValue, Policy, control_value

if TYPE_CHECKING:
    from refusal_edge.calibrate import ScoreTable
    from refusal_edge.llama import Llama

MAX_THREADS: Final = 512
"""ggml.h: GGML_MAX_N_THREADS."""


def add_context_arguments(parser: argparse.ArgumentParser) -> None:
    """How to load a model."""
    parser.add_argument(
        "--n-ctx", type=whole_number, default=0, metavar="N", help="context length (default: the model's own)"
    )
    parser.add_argument("--n-gpu-layers", type=int, default=0, metavar="N", help="layers on the GPU (-1: all)")
    parser.add_argument("--threads", type=thread_count, metavar="N", help="threads (default: llama-cpp-python's)")
    parser.add_argument("--verbose", action="store_true", help="show what llama.cpp says while it loads the model")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """A model, and what of its policy to change."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF with refusal_edge.* keys")
    add_context_arguments(parser)
    parser.add_argument(
        "-t",
        "--threshold",
        action="append",
        default=[],
        metavar="SLUG=VALUE",
        help='control value of a category: a number in [0, 1], "off" or "model"; repeatable',
    )
    parser.add_argument("--policy", metavar="POLICY.json", help="a file of `refusal-edge calibrate`")


def whole_number(text: str) -> int:
    """An argparse type: what fits the C library's signed 32 bits and is not negative."""
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number in [0, {2**31 - 1}], got {text!r}")
    return int(text)


def thread_count(text: str) -> int:
    """An argparse type: what llama.cpp can run at all."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"expected a number of threads in [1, {MAX_THREADS}], got {text!r}")
    return int(text)


def read_standard_input() -> str:
    """All of it.

    Raises:
        InvalidRequestError: it is empty, closed, or no text.
    """
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise not_text(error) from None
    if not text:
        raise InvalidRequestError("standard input: expected text, got none")
    return text


def not_text(error: UnicodeDecodeError) -> InvalidRequestError:
    """What to say of bytes on standard input that are no text."""
    byte = error.object[error.start]
    return InvalidRequestError(f"standard input: expected {error.encoding} text, got the byte 0x{byte:02x}")


def isa_problem() -> str | None:
    """What is wrong with REFUSAL_EDGE_ISA, if something is."""
    from refusal_edge import _native

    available = [name for name in _native.isa_names() if _native.isa_available(name)]
    if _native.isa_active() in available:
        return None
    got = os.environ.get("REFUSAL_EDGE_ISA")
    return f"REFUSAL_EDGE_ISA: expected one of {', '.join(available)} (what this machine can run), got {got!r}"


def check_isa() -> None:
    """Raises RefusalEdgeError if REFUSAL_EDGE_ISA names what cannot run: nothing could be decided."""
    if (problem := isa_problem()) is not None:
        raise RefusalEdgeError(problem)


def parse_thresholds(items: Sequence[str]) -> dict[str, ControlValue]:
    """`["safety=0.3", "humanizing=off"]` as a mapping.

    Raises:
        InvalidPolicyError: an item without "=", or a value out of range.
    """
    values: dict[str, ControlValue] = {}
    for item in items:
        slug, equals, text = item.partition("=")
        if not equals or not slug:
            raise InvalidPolicyError(f"--threshold: expected SLUG=VALUE, got {item!r}")
        try:
            value: object = text if text in ("off", "model") else float(text)
        except ValueError:
            value = text
        values[slug] = control_value(f"--threshold {slug}", value)
    return values


def open_model(path: str, args: argparse.Namespace) -> Llama:
    """The model with its own policy, loaded as `add_context_arguments` says."""
    from refusal_edge import Llama

    check_isa()
    threads = {"n_threads": args.threads, "n_threads_batch": args.threads}
    try:
        return Llama(path, n_ctx=args.n_ctx, n_gpu_layers=args.n_gpu_layers, verbose=args.verbose, **threads)
    except MetadataError as error:
        if path in str(error):
            raise
        raise MetadataError(f"{path}: {error}") from None


def load(args: argparse.Namespace) -> Llama:
    """The model with the policy file and the thresholds of the command line in force."""
    llm = open_model(args.model, args)
    if args.policy is not None:
        llm.load_policy(args.policy)
    set_thresholds(llm, args.threshold)
    return llm


def set_thresholds(llm: Llama, items: Sequence[str]) -> None:
    """Puts `SLUG=VALUE` items in force.

    Raises:
        InvalidPolicyError: an unknown category, or a value out of range.
    """
    values = parse_thresholds(items)
    for slug in values:
        llm.policy.category(slug)  # `replace` would take policy fields too
    llm.policy = llm.policy.replace(**values)


def decision_table(decision: Decision) -> str:
    """Scores as bars, control values beside them, the category refused for marked."""
    rows = [
        [
            slug,
            terminal.bar(q),
            f"{q:.4f}",
            terminal.number(decision.thresholds[slug]),
            "<- refused" * (slug == decision.category),
        ]
        for slug, q in decision.scores.items()
    ]
    rows.append(["respond", terminal.bar(decision.respond_score), f"{decision.respond_score:.4f}", "", ""])
    return terminal.table(rows, header=["category", "score", "", "threshold", ""])


@contextmanager
def rows_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, with rate and time left, for (rows done, rows in all)."""
    from tqdm import tqdm

    with tqdm(desc=description, unit="row", disable=None, leave=False, smoothing=0) as bar:  # the rate of the whole run

        def advance(done: int, total: int) -> None:
            if bar.total is None:
                bar.initial = bar.n = bar.last_print_n = done  # what was there before does not count as speed
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def load_scores(
    model: str, data: Path, args: argparse.Namespace, *, policy: Policy | None = None, unlabelled: bool = False
) -> ScoreTable:
    """The scores of `data` by `model`: read, if `data` is a scores file (of these weights), else computed and not kept.

    Says which rows are not among them.

    Args:
        policy: to score under, in place of the model's own.
        unlabelled: keep the rows without a label.

    Raises:
        InvalidRequestError: scores of another model, or bad rows (`args.skip_bad` leaves these out).
    """
    from refusal_edge import scoring
    from refusal_edge.calibrate import DataFile, read_scores
    from refusal_edge.calibrate.scorefile import is_scores_file

    if is_scores_file(data):
        table = read_scores(data, unlabelled=unlabelled)
        if table.header.weights_sha256 != scoring.weights_sha256(model):
            raise InvalidRequestError(f"{data}: scores of another model ({table.header.model}); score {model} first")
        warn_of_unused(table)
        return table
    llm = open_model(model, args)
    if policy is not None:
        llm.policy = policy
    rows = DataFile.check(data, list(llm.policy.thresholds), skip_bad=args.skip_bad)
    with tempfile.TemporaryDirectory() as folder, rows_bar("scoring") as progress:
        scores = Path(folder) / "scores.jsonl"
        scoring.score_file(llm, rows, scores, skip_bad=args.skip_bad, progress=progress)
        llm.close()
        table = read_scores(scores, unlabelled=unlabelled)
    warn_of_unused(table)
    return table


def warn_of_unused(table: ScoreTable) -> None:
    """Says on standard error which rows of the data are not in the table, and why."""
    if table.skipped:
        line, reason = next(iter(table.skipped.items()))
        terminal.warn(
            f"{table.header.dataset}: {len(table.skipped)} bad rows left out, the first on line {line}: {reason}"
        )
    if table.n_unlabelled:
        terminal.warn(f"{table.header.dataset}: {table.n_unlabelled} rows left out: they have no label")
