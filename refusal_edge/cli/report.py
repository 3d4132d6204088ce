"""`refusal-edge report`: what a policy does to scored rows, as a page to read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap intervals (default 0)")
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON document")


def run(args: argparse.Namespace) -> int:
    from refusal_edge.calibrate import read_policy_file, read_scores
    from refusal_edge.errors import InvalidPolicyError
    from refusal_edge.report import collect, write_report

    table = read_scores(args.scores)
    policy, calibration = table.header.policy, None
    if args.policy is not None:
        file = read_policy_file(args.policy)
        policy, calibration = file.policy, file.calibration
        if policy.control_token_ids != table.header.policy.control_token_ids:
            raise InvalidPolicyError(f"{args.policy}: its control tokens are not those of {args.scores}")
    facts = collect(table, policy, calibration, seed=args.seed)
    page = write_report(facts, args.output)
    if args.json:
        print(json.dumps(facts.summary(), indent=2))
        return 0
    print(f"false refusals  {facts.overall.false_refusals} of {facts.overall.false_refusals.n} benign rows")
    print(f"caught          {facts.overall.caught} of {facts.overall.caught.n} rows to refuse")
    for category in facts.categories:
        if not category.certifiable:
            n = category.false_refusals.n
            print(f"cannot certify  {category.name}: {n} benign rows, needs {category.needed}")
    print(f"wrote {page}")
    return 0
