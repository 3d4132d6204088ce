"""The endless stream of training sequences: chats, disturbed prompts and copying exercises, each with its share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .batches import Batch, SequenceBuilder, TokenRow, batches
from .controls import RESPOND
from .copying import Copying
from .corpus import Example, OwnCorpus
from .teacher import Teacher

_POOL = 8192
_EARLIER_SHARE = 0.1


@dataclass(frozen=True)
class Corpus:
    """All that there is to learn from."""

    own: OwnCorpus
    written: Sequence[Example]
    rows: Sequence[Example]
    teacher: Teacher
    copying: Copying


def stream(corpus: Corpus, builder: SequenceBuilder, batch_tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Batches without end, each from a pool in which every kind of sequence has its share."""
    kinds = _kinds(corpus, builder, rng)
    shares = [share for share, _ in kinds]
    while True:
        drawn = rng.choices([sequences for _, sequences in kinds], shares, k=_POOL)
        yield from batches([next(sequences) for sequences in drawn], batch_tokens, rng)


def _kinds(corpus: Corpus, builder: SequenceBuilder, rng: random.Random) -> list[tuple[float, Iterator[TokenRow]]]:
    """Shares of the sequences, and the sequences. Few rows are refused, so those are disturbed twice as often."""
    rows, written = corpus.rows, corpus.written
    answered = [*rows, *written]
    rows_by_need = [row for row in rows for _ in range(1 if row.control == RESPOND else 2)]

    def chats(draw: Callable[[], Sequence[Example]]) -> Iterator[TokenRow]:
        for example in _endless(draw, rng):
            earlier = rng.choice(answered) if rng.random() < _EARLIER_SHARE else None
            yield builder.clean(example, earlier, rng)

    def disturbed(draw: Callable[[], Sequence[Example]]) -> Iterator[TokenRow]:
        return (builder.noisy(example, rng) for example in _endless(draw, rng))

    return [
        (0.31, chats(lambda: corpus.own.draw(rng))),
        (0.20, chats(lambda: written)),
        (0.08, chats(lambda: rows)),
        (0.07, chats(lambda: corpus.copying.draw(_POOL, rng))),
        (0.12, disturbed(lambda: rows_by_need)),
        (0.09, disturbed(lambda: written)),
        (0.02, disturbed(lambda: corpus.own.draw(rng))),
        (0.11, disturbed(lambda: corpus.teacher.draw(_POOL, rng))),
    ]


def _endless(draw: Callable[[], Sequence[Example]], rng: random.Random) -> Iterator[Example]:
    while True:
        examples = list(draw())
        rng.shuffle(examples)
        yield from examples
