"""`refusal-edge demo`: the first five minutes."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_edge.cli import common, terminal

if TYPE_CHECKING:
    from refusal_edge.demo import Answer
    from refusal_edge.policy import Policy

SUMMARY = "convert the embedded demo model and ask it under three policies"
EXAMPLES = """  refusal-edge demo
  refusal-edge demo --keep demo.gguf   # keep the converted file, then: refusal-edge chat demo.gguf
  refusal-edge demo --json"""

LEAST_TEXT = 40
"""Columns for an answer; with less beside the decision, it goes below."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=Path, metavar="OUT.gguf", help="keep the converted model here")
    parser.add_argument("--force", action="store_true", help="replace the file that --keep names")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")


def run(args: argparse.Namespace) -> int:
    from refusal_edge import Llama, demo
    from refusal_edge.convert import convert

    common.check_isa()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or Path(folder) / "demo.gguf"
        convert(demo.checkpoint(), path, force=args.force)
        converted = time.monotonic() - started
        llm = Llama(str(path), n_ctx=512, verbose=False)
        answers = {prompt: list(demo.ask(llm, prompt)) for prompt in demo.PROMPTS}
        policy = llm.policy
        llm.close()
    if args.json:
        print(json.dumps({p: [_plain(a) for a in group] for p, group in answers.items()}, indent=2))
        return 0
    print(f"\nThe embedded demo model, converted to GGUF in {converted:.1f} s. One model, three policies:\n")
    print(_policy_table(demo.policies(policy)))
    for number, (prompt, group) in enumerate(answers.items(), 1):
        print(f"\n{number}. {prompt}\n{_block(group, policy)}")
    print(f"\n{time.monotonic() - started:.1f} s in all. {_closing(args.keep)}")
    return 0


def _plain(answer: Answer) -> dict[str, Any]:
    return {"policy": answer.policy_name, **answer.decision.to_dict(), "text": answer.text}


def _policy_table(policies: dict[str, Policy]) -> str:
    """Rows: categories. Columns: the control value under each policy."""

    def shown(value: float | str) -> str:
        return value if isinstance(value, str) else f">= {terminal.number(value)}"

    categories = next(iter(policies.values())).categories
    columns = [[c.id for c in categories], [c.title for c in categories]]
    columns += [list(map(shown, p.thresholds.values())) for p in policies.values()]
    table = terminal.table(list(zip(*columns)), header=["category", "meaning", *policies])
    key = "model: as the model would; off: never refuse; >= 0.02: refuse at that score"
    lines = textwrap.wrap(key, terminal.columns() - 1, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([table, "", *lines])


def _block(answers: list[Answer], policy: Policy) -> str:
    """Left: the scores as bars, the same under every policy. Right: what each policy decided, and the answer."""
    first = answers[0].decision
    scores = {**first.scores, "respond": first.respond_score}
    name_width = max(map(len, scores))
    left = [f"{name:<{name_width}} {terminal.bar(q, 10)} {q:4.2f}" for name, q in scores.items()]
    room = terminal.columns() - len(f"   {left[0]} │ ") - 1
    right = [line for answer in answers for line in _verdict(answer, room)]
    rows = itertools.zip_longest(left, right, fillvalue="")
    return "\n".join(f"   {terminal.pad(a, len(left[0]))} │ {b}".rstrip() for a, b in rows)


def _verdict(answer: Answer, room: int) -> list[str]:
    """The decision and, beside it or else below, the beginning of the answer, in `room` columns."""
    decision = answer.decision
    word = f"refuse: {decision.category}" if decision.refused else decision.outcome.replace("_", " ")
    head = f"{answer.policy_name:<10}  {word:<21}  "
    beside = room - len(head) >= LEAST_TEXT
    indent = " " * (len(head) if beside else 2)
    width = max(room - len(indent), LEAST_TEXT)
    text = textwrap.wrap(terminal.printable(answer.text), width, max_lines=2, placeholder=" ...") or [""]
    lines = [indent + line for line in text]
    return [head + text[0], *lines[1:]] if beside else [head.rstrip(), *lines]


def _closing(kept: Path | None) -> str:
    program = terminal.program()
    if kept:
        return f"Kept as {kept}. Next:\n  {program} chat {kept}"
    return f"Next:\n  {program} demo --keep demo.gguf\n  {program} chat demo.gguf"
