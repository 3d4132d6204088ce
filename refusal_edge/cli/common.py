"""Arguments and steps that several commands share: loading a model, a policy from flags, showing a decision."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from refusal_edge.cli import terminal
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidPolicyError
from refusal_edge.policy import ControlValue, control_value

if TYPE_CHECKING:
    from refusal_edge.llama import Llama


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a GGUF with refusal_edge.* keys")
    parser.add_argument("--n-ctx", type=int, default=0, metavar="N", help="context length (default: the model's own)")
    parser.add_argument("--n-gpu-layers", type=int, default=0, metavar="N", help="layers on the GPU (-1: all)")
    parser.add_argument(
        "-t",
        "--threshold",
        action="append",
        default=[],
        metavar="SLUG=VALUE",
        help='control value of a category: a number in [0, 1], "off" or "model"; repeatable',
    )


def parse_thresholds(items: Sequence[str]) -> dict[str, ControlValue]:
    """`["safety=0.3", "humanizing=off"]` as a mapping.

    Raises:
        InvalidPolicyError: an item without "=", or a value out of range.
    """
    values: dict[str, ControlValue] = {}
    for item in items:
        slug, equals, text = item.partition("=")
        if not equals or not slug:
            raise InvalidPolicyError(f"--threshold: expected SLUG=VALUE, got {item!r}")
        try:
            value: object = text if text in ("off", "model") else float(text)
        except ValueError:
            value = text
        values[slug] = control_value(f"--threshold {slug}", value)
    return values


def load(args: argparse.Namespace) -> Llama:
    """The model with the thresholds of the command line in force."""
    from refusal_edge import Llama

    llm = Llama(args.model, n_ctx=args.n_ctx, n_gpu_layers=args.n_gpu_layers, verbose=False)
    llm.policy = llm.policy.replace(**parse_thresholds(args.threshold))
    return llm


def decision_table(decision: Decision) -> str:
    """Scores as bars, control values beside them, the category refused for marked."""
    rows = [
        [
            slug,
            terminal.bar(q),
            f"{q:.4f}",
            _value(decision.thresholds[slug]),
            "<- refused" * (slug == decision.category),
        ]
        for slug, q in decision.scores.items()
    ]
    rows.append(["respond", terminal.bar(decision.respond_score), f"{decision.respond_score:.4f}", "", ""])
    return terminal.table(rows, header=["category", "score", "", "threshold", ""])


def _value(value: ControlValue) -> str:
    return value if isinstance(value, str) else f"{value:g}"
