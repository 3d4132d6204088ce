"""`refusal-edge report`: what a policy does to scored rows, as a page to read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_edge.cli import common, terminal

if TYPE_CHECKING:
    from refusal_edge.report import Facts

SUMMARY = "draw what a policy does to scored rows: one HTML page and its pictures"
EXAMPLES = """  refusal-edge report scores.jsonl --policy policy.json -o report/
  refusal-edge report scores.jsonl -o report/ --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scores", metavar="SCORES.jsonl", type=Path, help="a scores file of rows that calibrated nothing"
    )
    parser.add_argument(
        "--policy", metavar="POLICY.json", type=Path, help="policy file (default: the policy in force while scoring)"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="folder for report.html and PNGs"
    )
    parser.add_argument(
        "--seed", type=common.whole_number, default=0, metavar="N", help="of the bootstrap intervals (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON document")


def run(args: argparse.Namespace) -> int:
    from refusal_edge.calibrate import PolicyFile, read_policy_file, read_scores
    from refusal_edge.calibrate.extra import extra
    from refusal_edge.errors import InvalidPolicyError, InvalidRequestError
    from refusal_edge.report import collect, warnings_of, write_report

    extra("scipy")
    extra("matplotlib")
    if args.output.exists() and not args.output.is_dir():
        raise InvalidRequestError(f"-o {args.output}: expected a folder, got a file")
    table = read_scores(args.scores)
    common.warn_of_unused(table)
    file = PolicyFile(table.header.policy, table.header.calibration)
    if args.policy is not None:
        file = read_policy_file(args.policy)
        if file.policy.control_token_ids != table.header.policy.control_token_ids:
            raise InvalidPolicyError(f"{args.policy}: its control tokens are not those of {args.scores}")
    facts = collect(table, file, seed=args.seed)
    page = write_report(facts, args.output)
    for warning in warnings_of(facts):
        terminal.warn(warning)
    print(json.dumps(facts.summary(), indent=2) if args.json else _describe(facts, page))
    return 0


def _describe(facts: Facts, page: Path) -> str:
    overall = facts.overall
    rows = [
        ["benign rows refused at all", f"{overall.false_refusals} of {overall.false_refusals.n}"],
        ["rows to refuse caught", f"{overall.caught} of {overall.caught.n}"],
        ["F1", f"{facts.f1:.3f} (always refusing: {facts.always_refuse_f1:.3f})"],
    ]
    lines = [terminal.table(rows, indent="")]
    lines += [f"promised: {promise}\n  here: {realised}" for promise, realised in facts.promises]
    lines += [
        f"cannot certify {c.name} from these rows: {c.false_refusals.n} benign, needs {c.needed}"
        for c in facts.categories
        if not c.certifiable
    ]
    return "\n".join([*lines, f"wrote {page}"])
