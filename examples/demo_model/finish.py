"""Second stage: `python examples/demo_model/finish.py --data ../shared/data`, after train.py.

Goes on from the checkpoint with a linear teacher's opinion of disturbed prompts in place of repeated true labels (see
recipe/teacher.py), and with a third of the own examples, so that answers are not forgotten. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from recipe.batches import Batch, SequenceBuilder, Weights, batches
from recipe.checkpoint import load_checkpoint, save_checkpoint
from recipe.corpus import Example, OwnCorpus, answer_rows, read_answers, read_rows
from recipe.decisions import control_scores, measure
from recipe.kinds import read_kinds
from recipe.model import Llama
from recipe.optimise import Schedule, fit
from recipe.teacher import Teacher
from recipe.tokenizer import ChatEncoder

HERE = Path(__file__).resolve().parent
BATCH_TOKENS = 4096
DISTURBED_PER_ROW = 3


def main() -> None:
    """Train on; report on the calibration rows and save every 250 steps and at the end."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model, tokenizer = load_checkpoint(args.checkpoint)
    encoder = ChatEncoder(tokenizer)
    own = OwnCorpus(HERE / "answers")
    rows = answer_rows(
        read_rows(args.data / "coconot_train.jsonl"),
        read_answers(HERE / "answers" / "rows.jsonl"),
        read_kinds(HERE / "answers" / "kinds.json"),
    )
    held_out = [row for _, row in read_rows(args.data / "coconot_calibration.jsonl")]
    builder = SequenceBuilder(encoder, own.words["system"], Weights(), noise=args.noise, max_length=512)
    began = time.monotonic()

    def report(step: int, loss: float, averaged: Llama) -> None:
        result = measure(control_scores(averaged, encoder, held_out), held_out)
        print(
            f"step {step:5d}  loss {loss:.3f}  held out: AUROC {result['auroc']:.3f}  category "
            f"{result['category_share']:.3f}  {time.monotonic() - began:5.0f} s",
            flush=True,
        )
        save_checkpoint(args.out, averaged, tokenizer)

    schedule = Schedule(steps=args.steps, peak_rate=6e-4, warmup=20, average_decay=0.99)
    fit(model, stream(own, rows, Teacher(rows), builder, rng), schedule, report)


def parse_arguments() -> argparse.Namespace:
    """Options; the defaults are those of the committed checkpoint."""
    parser = argparse.ArgumentParser(description="Second stage of training the demo model, on the CPU.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the coconot_*.jsonl files")
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint", help="folder to go on from")
    parser.add_argument("--out", type=Path, default=HERE / "checkpoint", help="folder to write")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--noise", type=float, default=0.05, help="share of prompt tokens replaced at random")
    return parser.parse_args()


def stream(
    own: OwnCorpus, rows: list[Example], teacher: Teacher, builder: SequenceBuilder, rng: random.Random
) -> Iterator[Batch]:
    """Batches without end: chats with answers, and disturbed prompts up to the teacher's control token."""
    answered = [example for example in rows if example.answer is not None]
    while True:
        drawn = own.draw(rng)
        earlier = drawn + answered
        drawn = rng.sample(drawn, len(drawn) // 3)
        chats = [
            builder.clean(example, rng.choice(earlier) if rng.random() < 0.1 else None, rng)
            for example in drawn + answered
        ]
        noisy = [builder.noisy(example, rng) for example in teacher.draw(DISTURBED_PER_ROW, rng)]
        noisy += [builder.noisy(example, rng) for example in drawn if rng.random() < 0.2]
        yield from batches(chats + noisy, BATCH_TOKENS, rng)


if __name__ == "__main__":
    main()
