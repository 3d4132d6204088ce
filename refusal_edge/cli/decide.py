"""`refusal-edge decide`: what the policy says to one prompt, nothing generated."""

from __future__ import annotations

import argparse
import json

from refusal_edge.cli import common

SUMMARY = "score one prompt and print the decision; nothing is generated"
EXAMPLES = """  refusal-edge decide model.gguf "How do I pick a lock?"
  refusal-edge decide model.gguf "How do I pick a lock?" -t safety=0.3 -t humanizing=off
  echo "What is the time?" | refusal-edge decide model.gguf - --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads standard input")
    parser.add_argument("--system", metavar="TEXT", help="a system message before it")
    parser.add_argument("--json", action="store_true", help="print the decision as one JSON document")


def run(args: argparse.Namespace) -> int:
    llm = common.load(args)
    prompt = common.read_standard_input() if args.prompt == "-" else args.prompt
    messages = [{"role": "system", "content": args.system}] if args.system else []
    decision = llm.decide([*messages, {"role": "user", "content": prompt}])
    if args.json:
        print(json.dumps(decision.to_dict(), indent=2))
        return 0
    reason = f" ({decision.category})" if decision.category else ""
    print(f"{decision.outcome.replace('_', ' ')}{reason}\n\n{common.decision_table(decision)}\n")
    calibrated = "calibrated for this file" if decision.calibrated else "not calibrated"
    print(f"  control mass {decision.control_mass:.4f} · policy {decision.policy_id} ({calibrated})")
    return 0
