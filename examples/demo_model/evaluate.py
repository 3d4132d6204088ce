"""Measure the checkpoint: `python examples/demo_model/evaluate.py --data ../shared/data`.

Writes metrics.json and the block between the metrics markers of README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from recipe.checkpoint import load_checkpoint
from recipe.controls import ROLES
from recipe.corpus import read_rows
from recipe.decisions import answer, control_scores, measure
from recipe.model import Llama
from recipe.tokenizer import ChatEncoder

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- metrics -->", "<!-- end of metrics -->"


def main() -> None:
    """Measure, then write both files."""
    parser = argparse.ArgumentParser(description="Measure the demo checkpoint on the test rows.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the coconot_*.jsonl files")
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_checkpoint(args.checkpoint)
    encoder = ChatEncoder(tokenizer)
    metrics = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test": measure_file(model, encoder, args.data / "coconot_test.jsonl"),
        "calibration": measure_file(model, encoder, args.data / "coconot_calibration.jsonl"),
        "samples": samples(model, encoder),
    }
    (HERE / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = HERE / "README.md"
    readme.write_text(with_block(readme.read_text(encoding="utf-8"), markdown(metrics)), encoding="utf-8")
    print(markdown(metrics))


def measure_file(model: Llama, encoder: ChatEncoder, path: Path) -> dict[str, Any]:
    """Measures of one file of rows."""
    rows = [row for _, row in read_rows(path)]
    return measure(control_scores(model, encoder, rows), rows)


def samples(model: Llama, encoder: ChatEncoder) -> list[dict[str, str]]:
    """Greedy answers to the project's own sample prompts."""
    prompts = json.loads((HERE / "samples.json").read_text(encoding="utf-8"))["prompts"]
    answered = [(prompt, *answer(model, encoder, [("user", prompt)])) for prompt in prompts]
    return [{"prompt": prompt, "control": control, "answer": text} for prompt, control, text in answered]


def markdown(metrics: dict[str, Any]) -> str:
    """The README's block of numbers."""
    names = {
        "auroc": "AUROC, refuse or respond",
        "category_share": "right category among the refuse rows",
        "refusal_rate": "refusal rate, all rows",
        "refusal_rate_on_refuse_rows": "refusal rate, refuse rows",
        "refusal_rate_on_respond_rows": "refusal rate, respond rows (false positives)",
        "f1": "F1 of refusing, as trained",
        "always_refuse_f1": "F1 of always refusing, for comparison",
    }
    test, calibration = metrics["test"], metrics["calibration"]
    counts = [f"{part['rows']} rows, {part['refuse_rows']} refuse" for part in (test, calibration)]
    lines = [f"| | test ({counts[0]}) | calibration ({counts[1]}) |", "|---|---|---|"]
    lines += [f"| {name} | {test[key]:.3f} | {calibration[key]:.3f} |" for key, name in names.items()]
    lines += ["", "Test rows: label (rows) against the model's own pick among the six control tokens (columns).", ""]
    lines += ["| label | " + " | ".join(ROLES) + " |", "|---" * (len(ROLES) + 1) + "|"]
    lines += [
        f"| {role} | " + " | ".join(str(picks[pick]) for pick in ROLES) + " |"
        for role, picks in test["confusion"].items()
    ]
    lines += ["", "Greedy answers of the committed checkpoint to prompts of our own:", ""]
    lines += ["| prompt | control token | answer |", "|---|---|---|"]
    lines += [
        f"| {sample['prompt']} | {sample['control']} | {sample['answer'].replace(chr(10), ' / ')} |"
        for sample in metrics["samples"]
    ]
    return "\n".join(lines)


def with_block(text: str, block: str) -> str:
    """`text` with what stands between the markers replaced."""
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


if __name__ == "__main__":
    main()
