"""Turns examples into padded batches of token ids, targets and loss weights."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .corpus import Example
from .tokenizer import ChatEncoder


@dataclass(frozen=True)
class Weights:
    """Loss weight of a token by its place."""

    control: float = 4.0
    answer: float = 1.0
    prompt: float = 0.2


@dataclass(frozen=True)
class TokenRow:
    """Token ids and, for each of them, the weight of predicting it."""

    ids: list[int]
    weights: list[float]


class SequenceBuilder:
    """Lays out examples as chats, with the augmentations of training."""

    def __init__(
        self, encoder: ChatEncoder, systems: Sequence[str], weights: Weights, *, noise: float, max_length: int
    ) -> None:
        self.encoder = encoder
        self.systems = systems
        self.weights = weights
        self.noise = noise
        self.max_length = max_length

    def clean(self, example: Example, history: Example | None, rng: random.Random) -> TokenRow:
        """A whole exchange, sometimes under a system message or after an earlier exchange."""
        sequence = self._start(rng, share=0.15)
        if history is not None:
            self._exchange(sequence, history)
        self._exchange(sequence, example)
        return self._cut(sequence)

    def noisy(self, example: Example, rng: random.Random) -> TokenRow:
        """A prompt with random tokens in place of some, up to the control token: no cue can be relied on alone."""
        sequence = self._start(rng, share=0.1)
        vocabulary = self.encoder.n_pieces
        ids = [
            rng.randrange(vocabulary) if rng.random() < self.noise else token
            for token in self.encoder.text(example.prompt)
        ]
        self._add(
            sequence, [*self.encoder.header("user"), *ids, self.encoder.eot, *self.encoder.header("assistant")], 0.0
        )
        self._add(sequence, [self.encoder.control_of[example.control]], self.weights.control)
        return self._cut(sequence)

    def _start(self, rng: random.Random, *, share: float) -> TokenRow:
        sequence = TokenRow([self.encoder.bos], [0.0])
        if rng.random() < share:
            self._add(sequence, self.encoder.turn("system", rng.choice(self.systems)), 0.0)
        return sequence

    def _exchange(self, sequence: TokenRow, example: Example) -> None:
        encoder, weights = self.encoder, self.weights
        self._add(sequence, encoder.header("user"), 0.0)
        self._add(sequence, encoder.text(example.prompt.strip()), weights.prompt)
        self._add(sequence, [encoder.eot, *encoder.header("assistant")], 0.0)
        self._add(sequence, [encoder.control_of[example.control]], weights.control)
        if example.answer is not None:
            self._add(sequence, [*encoder.text(example.answer), encoder.eot], weights.answer)

    def _cut(self, sequence: TokenRow) -> TokenRow:
        return TokenRow(sequence.ids[-self.max_length :], sequence.weights[-self.max_length :])

    @staticmethod
    def _add(sequence: TokenRow, ids: Sequence[int], weight: float) -> None:
        sequence.ids.extend(ids)
        sequence.weights.extend([weight] * len(ids))


@dataclass(frozen=True)
class Batch:
    """`ids` and `targets` (batch, length) int64, `weights` (batch, length) float32; padding has weight 0."""

    ids: Tensor
    targets: Tensor
    weights: Tensor


def batches(sequences: Sequence[TokenRow], tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Batches of about `tokens` tokens, sequences of similar length together, in random order."""
    ordered = sorted(sequences, key=lambda sequence: len(sequence.ids) + rng.random() * 8)
    groups: list[list[TokenRow]] = [[]]
    for sequence in ordered:
        if groups[-1] and (len(groups[-1]) + 1) * len(sequence.ids) > tokens:
            groups.append([])
        groups[-1].append(sequence)
    rng.shuffle(groups)
    for group in groups:
        yield _pad(group)


def _pad(group: Sequence[TokenRow]) -> Batch:
    length = max(len(sequence.ids) for sequence in group)
    ids = torch.zeros(len(group), length, dtype=torch.int64)
    weights = torch.zeros(len(group), length)
    for row, sequence in enumerate(group):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        weights[row, : len(sequence.ids)] = torch.tensor(sequence.weights)
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:])
