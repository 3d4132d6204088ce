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
    from refusal_edge.calibrate.scorefile import Header
    from refusal_edge.scoring import Scored

SUMMARY = "score prompts: one prefill each, resumable, in shards; with --text, does the answer follow the token"
EXAMPLES = """  refusal-edge score model.gguf prompts.jsonl -o scores.jsonl
  refusal-edge score model.gguf prompts.jsonl -o part1.jsonl --shard 1/4
  refusal-edge score --merge part1.jsonl part2.jsonl part3.jsonl part4.jsonl -o scores.jsonl
  refusal-edge score model.gguf prompts.jsonl -o texts.jsonl --text --judge http://localhost:8080/judge

A row is {"prompt": "..."} or {"messages": [...]}, and where known "label": "refuse" or "respond", "category" and "id".
Started again after a kill, the same command goes on where it stopped."""

MAX_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a GGUF with refusal_edge.* keys")
    parser.add_argument("data", metavar="DATA.jsonl", nargs="?", help="prompts, one a line")
    parser.add_argument("-o", "--output", metavar="SCORES.jsonl", type=Path, required=True, help="scores file to write")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="score every N-th row only, beginning with row I")
    parser.add_argument("--merge", metavar="PART", nargs="+", type=Path, help="merge finished shards; needs no model")
    parser.add_argument("--force", action="store_true", help="with --merge: replace SCORES.jsonl if it exists")
    parser.add_argument(
        "--policy", metavar="POLICY.json", type=Path, help="score under this policy, not under the model's own"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and count them")
    parser.add_argument("--text", action="store_true", help="force each decision and judge the text behind it")
    parser.add_argument(
        "--judge",
        metavar="JUDGE",
        help='with --text: "opening" (the default, built in: looks for opening phrases), an http(s) URL, '
        "package.module:function, or path/to/file.py:function",
    )
    common.add_context_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def run(args: argparse.Namespace) -> int:
    _check_arguments(args)
    facts, text, header = _merge(args) if args.merge else _score(args)
    if header.judge is not None and header.shard == (1, 1):
        from refusal_edge.calibrate import read_scores
        from refusal_edge.calibrate.control_table import control_table

        table = control_table(read_scores(args.output, unlabelled=True))
        facts["control"] = [row.to_dict() for row in table]
        text += "\n\n" + _describe_control(table, header.judge)
    print(json.dumps(facts, indent=2) if args.json else text)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    """Nothing is asked for that would be ignored."""
    if args.merge and (args.model or args.text or args.policy or args.shard != "1/1"):
        raise InvalidRequestError("--merge: takes shards that are scored: no MODEL, --text, --policy or --shard")
    if not args.merge and not (args.model and args.data):
        raise InvalidRequestError("score: expected MODEL and DATA.jsonl, or --merge PART ...")
    if args.force and not args.merge:
        raise InvalidRequestError("--force: only with --merge; to score anew delete the file, or choose another -o")
    if args.judge is not None and not args.text:
        raise InvalidRequestError("--judge: only with --text, which makes the texts to judge")


def _merge(args: argparse.Namespace) -> tuple[dict[str, Any], str, Header]:
    from refusal_edge import scoring

    header = scoring.merge(args.merge, args.output, force=args.force)
    facts = {"rows": header.dataset_rows, "shards": len(args.merge), "output": str(args.output)}
    return facts, f"{args.output}: {header.dataset_rows} rows", header


def _score(args: argparse.Namespace) -> tuple[dict[str, Any], str, Header]:
    from refusal_edge import scoring
    from refusal_edge.calibrate.rows import DataFile
    from refusal_edge.calibrate.scorefile import read_header
    from refusal_edge.judge import load_judge

    shard = parse_shard(args.shard)
    judge = load_judge(args.judge or "opening") if args.text else None
    llm = common.open_model(args.model, args)
    if args.policy is not None:
        llm.load_policy(args.policy)
    data = DataFile.check(args.data, list(llm.policy.thresholds), skip_bad=args.skip_bad)
    with common.rows_bar("scoring") as progress:
        result = scoring.score_file(
            llm, data, args.output, shard=shard, skip_bad=args.skip_bad, judge=judge, progress=progress
        )
    return {**vars(result), "output": str(args.output)}, _describe(result, args.output), read_header(args.output)


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
