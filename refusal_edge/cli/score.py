"""`refusal-edge score`: every row of a data file through the model once; thresholds are arithmetic from then on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_edge.cli import common, terminal
from refusal_edge.errors import InvalidRequestError

if TYPE_CHECKING:
    from refusal_edge.calibrate.control_table import Band
    from refusal_edge.scoring import Scored

SUMMARY = (
    "score labelled prompts: one prefill each, resumable, in shards; with --text, does the answer follow the token"
)
EXAMPLES = """  refusal-edge score model.gguf prompts.jsonl -o scores.jsonl
  refusal-edge score model.gguf prompts.jsonl -o part1.jsonl --shard 1/4
  refusal-edge score --merge part1.jsonl part2.jsonl part3.jsonl part4.jsonl -o scores.jsonl
  refusal-edge score model.gguf prompts.jsonl -o texts.jsonl --text --judge http://localhost:8080/judge

A row is {"prompt": "..."} or {"messages": [...]}, with "label": "refuse" or "respond", and perhaps "category" and "id".
Started again after a kill, the same command goes on where it stopped."""

MAX_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a GGUF with refusal_edge.* keys")
    parser.add_argument("data", metavar="DATA.jsonl", nargs="?", help="labelled prompts")
    parser.add_argument("-o", "--output", metavar="SCORES.jsonl", type=Path, required=True, help="scores file to write")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="score every N-th row only, beginning with row I")
    parser.add_argument("--merge", metavar="PART", nargs="+", type=Path, help="merge finished shards; needs no model")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and count them")
    parser.add_argument("--text", action="store_true", help="force each decision and judge the text behind it")
    parser.add_argument(
        "--judge",
        metavar="JUDGE",
        default="opening",
        help='"opening" (built in: looks for opening phrases), an http(s) URL, or package.module:function',
    )
    common.add_context_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def run(args: argparse.Namespace) -> int:
    from refusal_edge import scoring
    from refusal_edge.calibrate.rows import DataFile

    if args.merge:
        header = scoring.merge(args.merge, args.output)
        _show(
            args, {"rows": header.dataset_rows, "shards": len(args.merge)}, f"{args.output}: {header.dataset_rows} rows"
        )
        return 0
    if not args.model or not args.data:
        raise InvalidRequestError("score: expected MODEL and DATA.jsonl, or --merge PART ...")
    shard = parse_shard(args.shard)
    llm = common.open_model(args.model, args)
    data = DataFile.check(args.data, list(llm.policy.thresholds), skip_bad=args.skip_bad)
    judge = None
    if args.text:
        from refusal_edge.judge import load_judge

        judge = load_judge(args.judge)
    with common.rows_bar("scoring") as progress:
        result = scoring.score_file(
            llm, data, args.output, shard=shard, skip_bad=args.skip_bad, judge=judge, progress=progress
        )
    facts: dict[str, Any] = {**vars(result), "output": str(args.output)}
    text = _describe(result, args.output)
    if judge is not None and shard == (1, 1):
        from refusal_edge.calibrate import read_scores
        from refusal_edge.calibrate.control_table import control_table

        table = control_table(read_scores(args.output))
        facts["control"] = [row.to_dict() for row in table]
        text += "\n\n" + _describe_control(table, args.judge)
    _show(args, facts, text)
    return 0


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/4" as (2, 4).

    Raises:
        InvalidRequestError: not of that form, or I not in [1, N].
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= 10_000):
        raise InvalidRequestError(f"--shard: expected I/N with 1 <= I <= N <= 10000, got {text!r}")
    return int(index), int(count)


def _describe(result: Scored, output: Path) -> str:
    lines = [f"{output}: {result.scored} rows scored, {result.resumed} were there already"]
    if result.skipped:
        lines.append(f"{len(result.skipped)} bad rows left out:")
        shown = list(result.skipped.items())[:MAX_SHOWN]
        lines += [f"  line {line}: {terminal.printable(reason)}" for line, reason in shown]
        lines += ["  ..."] * (len(result.skipped) > MAX_SHOWN)
    return "\n".join(lines)


def _describe_control(bands: list[Band], judge: str) -> str:
    rows = [
        [
            f"{b.low:g} to {b.high:g}" if b is not bands[-1] else "all",
            str(b.after_respond.n),
            *(str(n) for r in (b.after_respond, b.after_refuse) for n in (r.n - r.k, r.k)),
            str(b.after_respond),
        ]
        for b in bands
    ]
    after = ["[respond]: answers", "refuses", "refusal token: answers", "refuses"]
    note = " (built-in heuristic: it looks at the opening phrase and nothing else)" if judge == "opening" else ""
    return f"text behind a forced token, judged by {judge}{note}\n\n" + terminal.table(
        rows, header=["refusal score", "rows", *after, "refuses after [respond]"]
    )


def _show(args: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    print(json.dumps(facts, indent=2) if args.json else text)
