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
from recipe.batches import SequenceBuilder, Weights
from recipe.checkpoint import save_checkpoint
from recipe.copying import Copying
from recipe.corpus import OwnCorpus, read_answered_rows, read_rows, read_written
from recipe.decisions import control_scores, measure
from recipe.mixture import Corpus, stream
from recipe.model import Llama, ModelConfig
from recipe.optimise import Schedule, fit
from recipe.teacher import Teacher
from recipe.tokenizer import ChatEncoder, train_tokenizer

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train; report on the calibration rows and save every 250 steps."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = random.Random(args.seed)
    corpus = read_corpus(args.data)
    held_out = [row for _, row in read_rows(args.data / "coconot_calibration.jsonl")]
    config = ModelConfig()
    tokenizer = train_tokenizer(tokenizer_texts(corpus, rng), config.vocab_size)
    encoder = ChatEncoder(tokenizer)
    builder = SequenceBuilder(encoder, corpus.own.words["system"], Weights(), noise=args.noise, max_length=384)
    model = Llama(config, dropout=args.dropout)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} parameters, {len(corpus.rows)} rows, {len(corpus.written)} written examples", flush=True)
    began = time.monotonic()

    def report(step: int, loss: float, averaged: Llama) -> None:
        result = measure(control_scores(averaged, encoder, held_out), held_out)
        print(
            f"step {step:5d}  loss {loss:.3f}  held out: AUROC {result['auroc']:.3f}  category "
            f"{result['category_share']:.3f}  {time.monotonic() - began:5.0f} s",
            flush=True,
        )
        save_checkpoint(args.out, averaged, tokenizer)

    fit(model, stream(corpus, builder, args.batch_tokens, rng), encoder.control_ids, Schedule(args.steps), report)


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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--noise", type=float, default=0.2, help="share of prompt tokens replaced at random")
    parser.add_argument("--dropout", type=float, default=0.05)
    return parser.parse_args()


def read_corpus(data: Path) -> Corpus:
    """Rows, own and written examples, and what is made of them."""
    answers = HERE / "answers"
    rows, written = read_answered_rows(data, answers), read_written(answers)
    copying = Copying(example.prompt for example in [*rows, *written])
    return Corpus(OwnCorpus(answers), written, rows, Teacher(rows, written), copying)


def tokenizer_texts(corpus: Corpus, rng: random.Random) -> Iterator[str]:
    """Everything the tokenizer learns from; the written examples count double."""
    yield "system user assistant"
    for example in [*corpus.own.draw(rng), *corpus.rows, *corpus.written, *corpus.written]:
        yield example.prompt
        if example.answer is not None:
            yield example.answer


if __name__ == "__main__":
    main()
