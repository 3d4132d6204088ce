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
  refusal-edge calibrate model.gguf scores.jsonl -o policy.json --alpha 0.02
  refusal-edge calibrate model.gguf scores.jsonl --write calibrated.gguf
  refusal-edge calibrate model.gguf scores.jsonl -o policy.json --scope category
  refusal-edge calibrate model.gguf scores.jsonl -o policy.json --method f1 --bias

As it stands (np, pooled) the share of benign prompts that are refused at all stays at or under alpha with confidence
1 - delta, for prompts drawn as the benign rows were. Each run prints what it promises; docs/calibration.md says what
the other methods and scopes promise and what they do not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF with refusal_edge.* keys")
    parser.add_argument(
        "data", metavar="DATA.jsonl", type=Path, help="a scores file, or labelled prompts to score first"
    )
    parser.add_argument("-o", "--output", metavar="POLICY.json", type=Path, help="policy file to write")
    parser.add_argument("--write", metavar="OUT.gguf", type=Path, help="write the model with the policy in it")
    parser.add_argument("--force", action="store_true", help="replace POLICY.json and OUT.gguf if they exist")
    parser.add_argument(
        "--method", default="np", metavar="METHOD", help="np (default), ltt, crc, f1, youden, rate or cost"
    )
    parser.add_argument(
        "--scope",
        default="pooled",
        metavar="SCOPE",
        help="pooled (default: one threshold; the promise is about being refused at all), union (the same promise, a "
        "threshold a category, needs more rows), category (a threshold and a promise for each category's token alone: "
        "none about being refused at all)",
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
    parser.add_argument(
        "--seed", type=common.whole_number, default=0, metavar="N", help="draws the rows set aside (default 0)"
    )
    parser.add_argument("--off", action="append", default=[], metavar="SLUG", help="never refuse for it; repeatable")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and count them")
    common.add_context_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the policy file as one JSON document")


def run(args: argparse.Namespace) -> int:
    from refusal_edge.calibrate import PolicyFile, Target, calibrate
    from refusal_edge.calibrate.extra import extra
    from refusal_edge.pins import weights_sample

    extra("scipy")
    names = {f.name for f in dataclasses.fields(Target)}
    target = Target(**{name: value for name, value in vars(args).items() if name in names})
    _check_outputs(args)
    table = common.load_scores(args.model, args.data, args)
    policy = table.header.policy
    for slug in args.off:
        policy = policy.replace(**{policy.category(slug).id: "off"})  # `replace` alone would take policy fields too
    result = calibrate(table, policy, target)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    file = PolicyFile.of(result, table.header, today, weights_sample(args.model))
    if args.write is not None:  # first: it is the one that may fail
        _write_model(args, file)
    if args.output is not None:
        file.write(args.output)
    print(json.dumps(file.to_dict(), indent=2) if args.json else _describe(args, result, file, table))
    for warning in result.warnings:
        terminal.warn(warning)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Before anything is scored: nothing is lost, and there is somewhere to write.

    Raises:
        InvalidRequestError: no output, one that is an input, or both the same. ConversionError: one that may not be
            written.
    """
    from refusal_edge.convert.partfile import check_target

    outputs = {"-o": args.output, "--write": args.write}
    outputs = {option: path for option, path in outputs.items() if path is not None}
    if not outputs and not args.json:
        raise InvalidRequestError("calibrate: expected -o POLICY.json, --write OUT.gguf or --json: where should it go?")
    for option, path in outputs.items():
        for source in (Path(args.model), args.data):
            if path.exists() and source.exists() and path.samefile(source):
                raise InvalidRequestError(f"{option} {path}: is what calibrate reads; choose another name")
        check_target(path, force=args.force)
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise InvalidRequestError(f"-o and --write: expected two files, got {args.output} for both")


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


def _describe(args: argparse.Namespace, result: Calibration, file: PolicyFile, table: ScoreTable) -> str:
    measured = result.measured
    thresholds = [[slug, terminal.number(value)] for slug, value in result.policy.thresholds.items()]
    if result.policy.rule == "sum":
        thresholds = [["sum of all", terminal.number(result.policy.sum_threshold)]]
    lines = [
        f"{table.header.model} on {table.header.dataset}: {len(table)} rows, {result.n} benign ones for the thresholds",
        "",
        *_promises(result, file),
        "",
        terminal.table(thresholds, header=["category", "threshold"]),
        "",
    ]
    if result.fitted is not None:
        lines += [_fitted(result.fitted), ""]
    rates = [
        ["benign rows refused at all", str(measured.false_refusals)],
        ["rows to refuse caught", str(measured.caught)],
        ["F1", f"{measured.f1:.3f} (always refusing: {measured.always_refuse_f1:.3f})"],
    ]
    lines += ["on the rows that chose the thresholds, which flatters; `report` measures others:", terminal.table(rates)]
    lines += [f"wrote {path}" for path in (args.output, args.write) if path is not None]
    return "\n".join(lines)


def _promises(result: Calibration, file: PolicyFile) -> list[str]:
    from refusal_edge.calibrate.certificate import promises

    method, scope = result.target.method, result.scope
    if not result.target.promises:
        search = "one threshold" if scope == "pooled" else "a threshold for each category, searched together,"
        return [f"{method}: {search} chosen on labelled rows; nothing is promised"]
    lines = [f"{method}: {promise}" for promise in promises(file.calibration, file.certificates, file.policy)]
    if scope == "category":
        lines.append("nothing is promised about being refused at all: a prompt may pass another category's threshold")
    return lines


def _fitted(fitted: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{fitted[name][measure]:.4f}" for measure in ("nll", "brier", "ece"))]
        for name in ("before", "temperature", "bias")
        if name in fitted
    ]
    return f"fitted on {fitted['rows']} rows, measured on the others:\n" + terminal.table(
        rows, header=["", "NLL", "Brier", "ECE"]
    )
