"""Train the demo model: `python examples/demo_model/train.py --data ../shared/data`.

PyTorch on the CPU; see README.md for the wall time. The seed fixes data order, noise and initial weights.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from recipe.batches import Batch, SequenceBuilder, TokenRow, Weights, batches
from recipe.checkpoint import save_checkpoint
from recipe.controls import RESPOND
from recipe.corpus import Example, OwnCorpus, answer_rows, read_answers, read_rows
from recipe.decisions import control_scores, measure
from recipe.kinds import read_kinds
from recipe.model import Llama, ModelConfig
from recipe.optimise import Schedule, fit
from recipe.tokenizer import ChatEncoder, train_tokenizer

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train; report on the calibration rows and save every 250 steps."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = random.Random(args.seed)
    own = OwnCorpus(HERE / "answers")
    rows = answer_rows(
        read_rows(args.data / "coconot_train.jsonl"),
        read_answers(HERE / "answers" / "rows.jsonl"),
        read_kinds(HERE / "answers" / "kinds.json"),
    )
    held_out = [row for _, row in read_rows(args.data / "coconot_calibration.jsonl")]
    config = ModelConfig()
    tokenizer = train_tokenizer(tokenizer_texts(own, rows, rng), config.vocab_size)
    encoder = ChatEncoder(tokenizer)
    builder = SequenceBuilder(encoder, own.words["system"], Weights(), noise=args.noise, max_length=512)
    model = Llama(config, dropout=args.dropout)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} parameters, {len(rows)} rows, {len(own.draw(rng))} own examples an epoch")
    began = time.monotonic()

    def report(step: int, loss: float, averaged: Llama) -> None:
        result = measure(control_scores(averaged, encoder, held_out), held_out)
        print(
            f"step {step:5d}  loss {loss:.3f}  held out: AUROC {result['auroc']:.3f}  category "
            f"{result['category_share']:.3f}  {time.monotonic() - began:5.0f} s",
            flush=True,
        )
        save_checkpoint(args.out, averaged, tokenizer)

    fit(model, stream(own, rows, builder, args.batch_tokens, rng), Schedule(steps=args.steps), report)


def parse_arguments() -> argparse.Namespace:
    """Options; the defaults are those of the committed checkpoint."""
    parser = argparse.ArgumentParser(description="Train the demo model on the CPU.")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with coconot_train.jsonl and coconot_calibration.jsonl"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "checkpoint", help="folder to write (default: the committed one)"
    )
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--noise", type=float, default=0.15, help="share of prompt tokens replaced at random")
    parser.add_argument("--dropout", type=float, default=0.1)
    return parser.parse_args()


def tokenizer_texts(own: OwnCorpus, rows: list[Example], rng: random.Random) -> Iterator[str]:
    """Everything the tokenizer learns from."""
    yield "system user assistant"
    for example in [*own.draw(rng), *rows]:
        yield example.prompt
        if example.answer is not None:
            yield example.answer


def stream(
    own: OwnCorpus, rows: list[Example], builder: SequenceBuilder, batch_tokens: int, rng: random.Random
) -> Iterator[Batch]:
    """Batches without end, epoch after epoch of fresh draws."""
    while True:
        yield from batches(epoch(own, rows, builder, rng), batch_tokens, rng)


def epoch(own: OwnCorpus, rows: list[Example], builder: SequenceBuilder, rng: random.Random) -> list[TokenRow]:
    """Own examples and answered rows as whole chats; every prompt once more as noise up to the control token."""
    drawn = own.draw(rng)
    answered = [example for example in rows if example.answer is not None]
    earlier = drawn + answered
    chats = [
        builder.clean(example, rng.choice(earlier) if rng.random() < 0.1 else None, rng) for example in drawn + answered
    ]
    noisy = [builder.noisy(example, rng) for example in rows for _ in range(6 if example.control == RESPOND else 10)]
    noisy += [builder.noisy(example, rng) for example in drawn if rng.random() < 0.2]
    return chats + noisy


if __name__ == "__main__":
    main()
