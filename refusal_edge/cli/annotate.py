"""`refusal-edge annotate`: a GGUF that another tool made becomes one with control tokens."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_edge.cli import common, terminal, tokens

if TYPE_CHECKING:
    from refusal_edge.convert.annotate import AnnotateReport

SUMMARY = "stamp control tokens and thresholds into a GGUF that another tool made"
EXAMPLES = """  refusal-edge annotate zephyr-refusal.Q4_K_M.gguf -o zephyr-edge.gguf
  refusal-edge annotate model.gguf -o out.gguf --token respond=128261 --token "safety=[no]"
  refusal-edge annotate model.gguf -o strict.gguf --threshold safety=0.3 --threshold humanizing=off
  refusal-edge annotate model.gguf -o out.gguf --dry-run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="IN.gguf", type=Path, help="a GGUF file of any architecture")
    parser.add_argument("-o", "--output", metavar="OUT.gguf", type=Path, required=True, help="file to write")
    tokens.add_token_arguments(parser)
    parser.add_argument(
        "--threshold",
        dest="thresholds",
        action="append",
        default=[],
        metavar="SLUG=VALUE",
        help='control value of a category: a number in [0, 1], "off" or "model"; repeatable',
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf if it exists")
    parser.add_argument("--dry-run", action="store_true", help="show old and new values, write nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from refusal_edge.convert.annotate import annotate

    thresholds = common.parse_thresholds(args.thresholds)
    with tokens.bytes_bar("copying") as progress:
        report = annotate(
            args.file,
            args.output,
            preset=args.preset,
            tokens=args.tokens,
            token_type=args.token_type,
            thresholds=thresholds,
            force=args.force,
            dry_run=args.dry_run,
            progress=progress,
        )
    print(json.dumps(report.to_dict(), indent=2) if args.json else _describe(report))
    return 0


def _describe(report: AnnotateReport) -> str:
    verb = "would write" if report.dry_run else "wrote"
    lines = [f"{verb} {report.out}: {report.n_bytes / 1e6:,.1f} MB, {report.seconds:.1f} s", ""]
    if report.changes:
        rows = [
            [change.key, *(terminal.printable(terminal.number(value)) for value in (change.old, change.new))]
            for change in report.changes
        ]
        lines.append(terminal.table(rows, header=["key", "old", "new"]))
    else:
        lines.append("  nothing changes: the file already says all this")
    reachable = tokens.REACHABLE[report.stamp.reachable or "text"]
    return "\n".join([*lines, "", reachable, *(f"warning: {warning}" for warning in report.warnings)])
