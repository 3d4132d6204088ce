"""`refusal-edge drift`: did quantising, or another build, change what the model refuses?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_edge.cli import common, terminal
from refusal_edge.errors import InvalidRequestError

if TYPE_CHECKING:
    from refusal_edge.calibrate import ScoreTable
    from refusal_edge.calibrate.metrics import Rate
    from refusal_edge.drift import Drift, Shift

SUMMARY = "compare what two models refuse on the same prompts, at the thresholds of the first"
EXAMPLES = """  refusal-edge drift model-f16.gguf model-q4_0.gguf prompts.jsonl
  refusal-edge drift model-f16.gguf model-q4_0.gguf prompts.jsonl --policy policy.json --max-flips 0.01
  refusal-edge drift scores-f16.jsonl scores-q4_0.jsonl --json

Each of A and B may be a scores file; DATA.jsonl is needed where one is a model. Exit code 1: too many flips."""

EXIT_DRIFTED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="model (or its scores file) whose thresholds are used")
    parser.add_argument("b", metavar="B", type=Path, help="model (or its scores file) to hold against it")
    parser.add_argument("data", metavar="DATA.jsonl", type=Path, nargs="?", help="labelled prompts")
    parser.add_argument("--policy", metavar="POLICY.json", type=Path, help="policy file in place of A's own thresholds")
    parser.add_argument(
        "--max-flips", type=float, metavar="SHARE", help="share of rows that may be decided differently"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out")
    common.add_context_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def run(args: argparse.Namespace) -> int:
    from refusal_edge.calibrate import read_policy_file
    from refusal_edge.drift import compare

    if args.max_flips is not None and not 0 <= args.max_flips <= 1:
        raise InvalidRequestError(f"--max-flips: expected a share in [0, 1], got {args.max_flips!r}")
    a, b = (_scores(path, args) for path in (args.a, args.b))
    policy = a.header.policy if args.policy is None else read_policy_file(args.policy).policy
    drift = compare(a, b, policy)
    passed = args.max_flips is None or drift.overall.flips.value <= args.max_flips
    if args.json:
        print(json.dumps({**drift.to_dict(), "max_flips": args.max_flips, "passed": passed}, indent=2))
    else:
        print(_describe(drift))
        if not passed:
            print(f"\n{drift.overall.flips.value:.2%} of rows flip, more than the {args.max_flips:.2%} allowed")
    return 0 if passed else EXIT_DRIFTED


def _scores(path: Path, args: argparse.Namespace) -> ScoreTable:
    from refusal_edge.calibrate import read_scores
    from refusal_edge.calibrate.scorefile import is_scores_file

    if is_scores_file(path):
        return read_scores(path)
    if args.data is None:
        raise InvalidRequestError(f"drift: expected DATA.jsonl to score {path} on")
    return common.load_scores(str(path), args.data, args)


def _describe(drift: Drift) -> str:
    header = ["category", "flips", "caught A", "caught B", "false refusals A", "B", "AUROC A", "change", "median move"]
    moves = [
        [terminal.printable(m.id), m.category, f"{m.before:+.3f}", f"{m.after:+.3f}", f"{m.after - m.before:+.3f}"]
        for m in drift.moves
    ]
    return "\n".join(
        [
            f"A {drift.models[0]}, B {drift.models[1]}: {drift.n} rows, {drift.overall.flips} decided differently",
            "",
            terminal.table([_row(s) for s in (*drift.categories, drift.overall)], header=header),
            "",
            "largest moves of log-odds:",
            terminal.table(moves, header=["row", "category", "A", "B", "move"]),
        ]
    )


def _row(shift: Shift) -> list[str]:
    a, b = shift.auroc
    return [
        shift.name,
        f"{shift.flips.k} of {shift.flips.n}",
        *(_share(rate) for rate in (*shift.caught, *shift.false_refusals)),
        "-" if a != a else f"{a:.4f}",
        "-" if a != a else f"{b - a:+.4f}",
        "-" if shift.median_move != shift.median_move else f"{shift.median_move:.4f}",
    ]


def _share(rate: Rate) -> str:
    return f"{rate.value:.1%}" if rate.n else "-"
