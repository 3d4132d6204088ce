#!/usr/bin/env python3
"""Writes the worked example of docs/calibration.md anew: the demo model on the project's prompts, and what types move.

    python tools/calibration_example.py --data DIR

DIR holds coconot_calibration.jsonl and coconot_test.jsonl. What lies between the two markers is replaced, nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from refusal_edge import Llama, demo
from refusal_edge.calibrate import DataFile, PolicyFile, ScoreTable, Target, calibrate, read_scores
from refusal_edge.calibrate.certificate import percent
from refusal_edge.convert import convert
from refusal_edge.drift import Drift, compare
from refusal_edge.report import Facts, collect
from refusal_edge.scoring import score_file

BEGIN, END = "<!-- calibration example: begin -->", "<!-- calibration example: end -->"
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "calibration.md"
TYPES = ("f32", "f16", "q8_0", "q4_0")
TARGETS = {
    "np (default)": Target(),
    "np, alpha .10": Target(alpha=0.1),
    "crc": Target("crc"),
    "crc, category": Target("crc", scope="category"),
    "f1": Target("f1"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="write the worked example of docs/calibration.md anew: the demo model on the project's prompts"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of coconot_calibration.jsonl and coconot_test")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="file with the two markers")
    args = parser.parse_args(argv)
    text = args.document.read_text(encoding="utf-8")
    between_markers(text, "")  # before the work of a few minutes
    args.document.write_text(between_markers(text, write_example(args.data)), encoding="utf-8")
    return 0


def between_markers(text: str, example: str) -> str:
    """`text` with `example` in place of what lies between the markers.

    Raises:
        ValueError: a marker is missing, or there twice.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN} and, behind it, {END}, once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{example.strip()}\n{END}{rest.split(END)[1]}"


def write_example(data: Path) -> str:
    """The example as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        models = {name: Path(folder) / f"demo-{name}.gguf" for name in TYPES}
        for name, path in models.items():
            convert(demo.checkpoint(), path, outtype=name)
        calibration = scored(models["f32"], data / "coconot_calibration.jsonl", Path(folder))
        test = {name: scored(path, data / "coconot_test.jsonl", Path(folder)) for name, path in models.items()}
    trained = calibration.header.policy
    files = {
        name: PolicyFile.of(calibrate(calibration, trained, target), calibration.header, "")
        for name, target in TARGETS.items()
    }
    facts = {name: collect(test["f32"], file) for name, file in files.items()}
    facts["as trained"] = collect(test["f32"], PolicyFile(trained))
    default = files["np (default)"].policy
    drifts = {name: compare(test["f32"], test[name], default) for name in TYPES[1:]}
    return "\n\n".join(
        [
            f"The demo model (f32, weights `{calibration.header.weights_sha256[:12]}`), calibrated on "
            f"{rows(calibration)}, measured on {rows(test['f32'])}. Intervals are 95 % Clopper-Pearson.",
            "`refusal-edge calibrate demo-f32.gguf calibration.jsonl` on benign test rows:",
            by_category(facts["np (default)"]),
            f"What was promised, and what happened. {uncertified(files['crc, category'])}",
            table(
                ("calibrated with", "promised", "of benign rows", "happened"),
                (
                    (name, f"at most {percent(promise.alpha)} of {promise.event}, {promise.sureness}", n, rate)
                    for name in TARGETS
                    for promise, rate in facts[name].promises
                    for n in [rate.n]
                ),
            ),
            f"What the thresholds catch. Always refusing has F1 {facts['f1'].always_refuse_f1:.3f}.",
            table(
                ("policy", "benign rows refused at all", "rows to refuse caught", "F1"),
                ((name, f.overall.false_refusals, f.overall.caught, f"{f.f1:.3f}") for name, f in facts.items()),
            ),
            "What the type of the file moves: `refusal-edge drift` against f32, at the thresholds of the default.",
            table(
                ("type", "decided differently", "benign rows refused", "caught", "AUROC", "largest move of log-odds"),
                (drift_row(name, drift) for name, drift in drifts.items()),
            ),
        ]
    )


def rows(table: ScoreTable) -> str:
    return f"`{table.header.dataset}` ({len(table)} rows, {int((~table.refuse).sum())} benign)"


def scored(model: Path, data: Path, folder: Path) -> ScoreTable:
    llm = Llama(model, n_ctx=1024, verbose=False)
    out = folder / f"{model.stem}-{data.stem}.jsonl"
    score_file(llm, DataFile.check(data, list(llm.policy.thresholds)), out)
    llm.close()
    return read_scores(out)


def by_category(facts: Facts) -> str:
    at_all = next(promise for promise, _ in facts.promises if promise.at_all)
    needed = {u.category: u for u in facts.file.uncertified}
    lines: list[tuple[object, ...]] = []
    for c in facts.categories:
        alone = (
            "" if c.name not in needed else f"cannot certify: {needed[c.name].n} rows, needs {needed[c.name].needed}"
        )
        lines.append((c.name, c.false_refusals.n, c.false_refusals, c.own_false_refusals, alone))
    promised = f"at most {percent(at_all.alpha)} refused at all"
    lines.append(("all", facts.overall.false_refusals.n, facts.overall.false_refusals, "", promised))
    return table(("benign rows near", "rows", "refused at all", "pass its own threshold", "promised"), lines)


def uncertified(file: PolicyFile) -> str:
    """What even the method that needs the fewest rows cannot say."""
    names = ", ".join(f"{u.category} ({u.n} benign rows)" for u in file.uncertified)
    return f"Prompts near {names} cannot be certified on their own, not even by crc." if names else ""


def drift_row(name: str, drift: Drift) -> tuple[object, ...]:
    moves = [move for shift in drift.categories for move in shift.largest_moves]
    largest = max((abs(move.after - move.before) for move in moves), default=0.0)
    before, after = drift.overall.auroc
    return (
        name,
        f"{drift.overall.flips.k} of {drift.n}",
        " -> ".join(f"{rate.value:.1%}" for rate in drift.overall.false_refusals),
        " -> ".join(f"{rate.value:.1%}" for rate in drift.overall.caught),
        f"{before:.4f} -> {after:.4f}",
        f"{largest:.2f}",
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
