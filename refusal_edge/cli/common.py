"""Arguments and steps that several commands share: loading a model, a policy from flags, showing a decision."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_edge.cli import terminal
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidPolicyError, InvalidRequestError
from refusal_edge.policy import ControlValue, control_value

if TYPE_CHECKING:
    from refusal_edge.calibrate import ScoreTable
    from refusal_edge.llama import Llama


def add_context_arguments(parser: argparse.ArgumentParser) -> None:
    """How to load a model."""
    parser.add_argument(
        "--n-ctx", type=whole_number, default=0, metavar="N", help="context length (default: the model's own)"
    )
    parser.add_argument("--n-gpu-layers", type=int, default=0, metavar="N", help="layers on the GPU (-1: all)")
    parser.add_argument("--threads", type=whole_number, metavar="N", help="threads (default: llama-cpp-python's)")


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

    threads = {"n_threads": args.threads, "n_threads_batch": args.threads}
    return Llama(path, n_ctx=args.n_ctx, n_gpu_layers=args.n_gpu_layers, verbose=False, **threads)


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

    with tqdm(desc=description, unit="row", disable=None, leave=False) as bar:

        def advance(done: int, total: int) -> None:
            if bar.total is None:
                bar.initial = bar.n = done  # what was there before does not count as speed
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def load_scores(model: str, data: Path, args: argparse.Namespace) -> ScoreTable:
    """The scores of `data` by `model`: read, if `data` is a scores file (of these weights), else computed and not kept.

    Raises:
        InvalidRequestError: scores of another model, or bad rows (`args.skip_bad` leaves these out).
    """
    from refusal_edge import scoring
    from refusal_edge.calibrate import DataFile, read_scores
    from refusal_edge.calibrate.scorefile import is_scores_file

    if is_scores_file(data):
        table = read_scores(data)
        if table.header.weights_sha256 != scoring.weights_sha256(model):
            raise InvalidRequestError(f"{data}: scores of another model ({table.header.model}); score {model} first")
        return table
    llm = open_model(model, args)
    rows = DataFile.check(data, list(llm.policy.thresholds), skip_bad=args.skip_bad)
    with tempfile.TemporaryDirectory() as folder, rows_bar("scoring") as progress:
        scores = Path(folder) / "scores.jsonl"
        scoring.score_file(llm, rows, scores, skip_bad=args.skip_bad, progress=progress)
        llm.close()
        return read_scores(scores)
