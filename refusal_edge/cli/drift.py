"""`refusal-edge drift`: did quantising, or another build, change what the model refuses?"""

from __future__ import annotations

import argparse
import json
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_edge.cli import EXIT_BAD_INPUT, common, terminal
from refusal_edge.errors import InvalidRequestError, RefusalEdgeError

if TYPE_CHECKING:
    from refusal_edge.calibrate import ScoreTable
    from refusal_edge.calibrate.metrics import Rate
    from refusal_edge.drift import Drift, Shift
    from refusal_edge.policy import Policy

SUMMARY = "compare what two models refuse on the same prompts, at the thresholds of the first"
EXAMPLES = """  refusal-edge drift model-f16.gguf model-q4_0.gguf prompts.jsonl
  refusal-edge drift model-f16.gguf model-q4_0.gguf prompts.jsonl --policy policy.json --max-flips 0.01
  refusal-edge drift scores-f16.jsonl scores-q4_0.jsonl --json

Each of A and B may be a scores file; DATA.jsonl is needed where one is a model. B is scored under the policy of A.
Exit code 1: too many flips, and nothing else; 2: the comparison failed."""

EXIT_DRIFTED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="model (or its scores file) whose thresholds are used")
    parser.add_argument("b", metavar="B", type=Path, help="model (or its scores file) to hold against it")
    parser.add_argument("data", metavar="DATA.jsonl", type=Path, nargs="?", help="prompts, one a line")
    parser.add_argument("--policy", metavar="POLICY.json", type=Path, help="policy file in place of A's own policy")
    parser.add_argument(
        "--max-flips", type=float, metavar="SHARE", help="share of rows that may be decided differently"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out")
    common.add_context_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def run(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except (RefusalEdgeError, OSError):
        raise
    except Exception:  # Python would exit with 1, which means "drifted"
        traceback.print_exc()
        return EXIT_BAD_INPUT


def _run(args: argparse.Namespace) -> int:
    from refusal_edge.calibrate import read_policy_file
    from refusal_edge.calibrate.scorefile import is_scores_file
    from refusal_edge.drift import compare

    if args.max_flips is not None and not 0 <= args.max_flips <= 1:
        raise InvalidRequestError(f"--max-flips: expected a share in [0, 1], got {args.max_flips!r}")
    models = [path for path in (args.a, args.b) if not is_scores_file(path)]
    if models and args.data is None:
        raise InvalidRequestError(f"drift: expected DATA.jsonl to score {models[0]} on")
    if args.data is not None and not models:
        raise InvalidRequestError(f"drift: A and B are scores files, got {args.data} as well: leave it out")
    policy = None if args.policy is None else read_policy_file(args.policy).policy
    a = _scores(args.a, policy, args)
    b = _scores(args.b, a.header.policy, args)
    drift = compare(a, b, policy or a.header.policy)
    passed = args.max_flips is None or drift.overall.flips.value <= args.max_flips
    if args.json:
        print(json.dumps({**drift.to_dict(), "max_flips": args.max_flips, "passed": passed}, indent=2))
    else:
        print(_describe(drift))
        if not passed:
            print(f"\n{drift.overall.flips.value:.2%} of rows flip, more than the {args.max_flips:.2%} allowed")
    return 0 if passed else EXIT_DRIFTED


def _scores(path: Path, policy: Policy | None, args: argparse.Namespace) -> ScoreTable:
    """Read from a scores file, or made by a model, then under `policy`."""
    from refusal_edge.calibrate import read_scores
    from refusal_edge.calibrate.scorefile import is_scores_file

    if not is_scores_file(path):
        return common.load_scores(str(path), args.data, args, policy=policy, unlabelled=True)
    table = read_scores(path, unlabelled=True)
    common.warn_of_unused(table)
    return table


def _describe(drift: Drift) -> str:
    header = ["category", "flips", "caught A", "caught B", "false refusals A", "B", "AUROC A", "change", "median move"]
    moves = [
        [shift.name, terminal.printable(m.id), f"{m.before:+.3f}", f"{m.after:+.3f}", f"{m.after - m.before:+.3f}"]
        for shift in drift.categories
        for m in shift.largest_moves
    ]
    return "\n".join(
        [
            f"A {drift.models[0]}, B {drift.models[1]}: {drift.n} rows, {drift.overall.flips} decided differently",
            "",
            terminal.table([_row(s) for s in (*drift.categories, drift.overall)], header=header),
            "",
            "largest moves of log-odds:",
            terminal.table(moves, header=["category", "row", "A", "B", "move"]),
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
