"""`refusal-edge calibrate`: thresholds with a guarantee, as a policy file or in a GGUF."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_edge.cli import common, terminal
from refusal_edge.errors import InvalidRequestError

if TYPE_CHECKING:
    from refusal_edge.calibrate import Calibration, PolicyFile, ScoreTable

SUMMARY = "choose the thresholds that keep false refusals under a rate you name"
EXAMPLES = """  refusal-edge calibrate model.gguf prompts.jsonl -o policy.json
  refusal-edge calibrate model.gguf scores.jsonl -o policy.json --alpha 0.02 --scope pooled
  refusal-edge calibrate model.gguf scores.jsonl --write calibrated.gguf
  refusal-edge calibrate model.gguf scores.jsonl -o policy.json --method f1 --bias

With np (the default) the share of benign prompts that are refused stays at or under alpha with confidence 1 - delta,
for prompts drawn as the benign rows were. docs/calibration.md says what each method promises and what it does not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF with refusal_edge.* keys")
    parser.add_argument(
        "data", metavar="DATA.jsonl", type=Path, help="a scores file, or labelled prompts to score first"
    )
    parser.add_argument("-o", "--output", metavar="POLICY.json", type=Path, help="policy file to write")
    parser.add_argument("--write", metavar="OUT.gguf", type=Path, help="write the model with the policy in it")
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf if it exists")
    parser.add_argument(
        "--method", default="np", metavar="METHOD", help="np (default), ltt, crc, f1, youden, rate or cost"
    )
    parser.add_argument(
        "--scope",
        default="category",
        metavar="SCOPE",
        help="category (default: each from its own benign rows where they suffice), pooled (one threshold, being "
        "refused at all), union (one a category, being refused at all)",
    )
    parser.add_argument("--alpha", type=float, default=0.05, metavar="A", help="false-positive rate (default 0.05)")
    parser.add_argument("--delta", type=float, default=0.05, metavar="D", help="chance of passing it (default 0.05)")
    parser.add_argument("--rate", type=float, default=0.1, metavar="R", help="share of rows to refuse (method rate)")
    parser.add_argument("--cost-fp", type=float, default=1.0, metavar="C", help="cost of a false refusal (method cost)")
    parser.add_argument(
        "--cost-fn", type=float, default=1.0, metavar="C", help="cost of a missed refusal (method cost)"
    )
    parser.add_argument("--temperature", action="store_true", help="fit a temperature first, on rows set aside")
    parser.add_argument("--bias", action="store_true", help="fit a bias a category first, on rows set aside")
    parser.add_argument("--fit-fraction", type=float, default=0.3, metavar="F", help="rows set aside (default 0.3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the rows set aside (default 0)")
    parser.add_argument("--off", action="append", default=[], metavar="SLUG", help="never refuse for it; repeatable")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and count them")
    common.add_context_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the policy file as one JSON document")


def run(args: argparse.Namespace) -> int:
    from refusal_edge.calibrate import PolicyFile, Target, calibrate

    names = {f.name for f in dataclasses.fields(Target)}
    target = Target(**{name: value for name, value in vars(args).items() if name in names})
    if args.output is None and args.write is None and not args.json:
        raise InvalidRequestError("calibrate: expected -o POLICY.json, --write OUT.gguf or --json: where should it go?")
    table = common.load_scores(args.model, args.data, args)
    policy = table.header.policy.replace(**dict.fromkeys(args.off, "off"))
    result = calibrate(table, policy, target)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    file = PolicyFile.of(result, table.header, today)
    if args.output is not None:
        file.write(args.output)
    if args.write is not None:
        _write_model(args, file)
    print(json.dumps(file.to_dict(), indent=2) if args.json else _describe(args, result, table))
    return 0


def _write_model(args: argparse.Namespace, file: PolicyFile) -> None:
    from refusal_edge.convert.annotate import restamp
    from refusal_edge.gguf_file import read_gguf
    from refusal_edge.keys import Stamp

    with read_gguf(args.model) as model:
        stamp = Stamp.from_kv(model.kv)
    policy = file.policy
    stamp = dataclasses.replace(
        stamp,
        **{name: getattr(policy, name) for name in ("categories", "rule", "score", "temperature", "min_control_mass")},
        fallback=policy.fallback,
        sum_threshold=policy.sum_threshold if policy.rule == "sum" else stamp.sum_threshold,
        calibration=file.calibration,
    )
    restamp(args.model, args.write, stamp, force=args.force)


def _describe(args: argparse.Namespace, result: Calibration, table: ScoreTable) -> str:
    lines = [f"{table.header.model} on {table.header.dataset}: {len(table)} rows, {result.n} benign", ""]
    lines += [_promise(c.to_dict(), result.target.method) for c in result.certificates]
    thresholds = [[slug, terminal.number(value)] for slug, value in result.policy.thresholds.items()]
    if result.policy.rule == "sum":
        thresholds = [["sum of all", terminal.number(result.policy.sum_threshold)]]
    lines += ["", terminal.table(thresholds, header=["category", "threshold"]), ""]
    if result.fitted is not None:
        lines += [_fitted(result.fitted), ""]
    lines.append(f"benign rows that this policy refuses for any category, of these same rows: {result.refused_benign}")
    lines += [f"warning: {warning}" for warning in result.warnings]
    lines += [f"wrote {path}" for path in (args.output, args.write) if path is not None]
    return "\n".join(lines)


def _promise(certificate: dict[str, Any], method: str) -> str:
    names = ", ".join(certificate["categories"])
    rows = f"{certificate['n']} benign rows" + (f" of {certificate['rows']}" if certificate["rows"] else "")
    what = "pass" if certificate["rows"] or len(certificate["categories"]) == 1 else "pass any of"
    if certificate["alpha"] is None:
        return (
            f"{method}: {names}: chosen on labelled rows, {certificate['refused']} of {rows} pass; nothing is promised"
        )
    kind = f"with confidence {1 - certificate['delta']:.4g}" if certificate["delta"] is not None else "on average"
    return f"{method}: at most {certificate['alpha']:.4g} of benign prompts {what} {names}, {kind}, from {rows}"


def _fitted(fitted: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{fitted[name][measure]:.4f}" for measure in ("nll", "brier", "ece"))]
        for name in ("before", "temperature", "bias")
        if name in fitted
    ]
    return f"fitted on {fitted['rows']} rows, measured on the others:\n" + terminal.table(
        rows, header=["", "NLL", "Brier", "ECE"]
    )
