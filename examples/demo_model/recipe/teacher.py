"""A linear teacher for the decision: from few prompts n-grams generalise better than a network that learns by heart.

Logistic regression on word and character n-grams labels prompts that nobody wrote: prompts cut, spliced and with words
swapped. The network learns the teacher's opinion of endless such prompts instead of repeating the few true labels
(distillation: Hinton, Vinyals, Dean 2015, arXiv 1503.02531). Labels are drawn from the teacher's probabilities, which
has the same expected gradient as soft targets.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

from .corpus import Example

_MAX_WORDS = 80
_DROP = 0.08
_SWAP = 0.08
_SPLICE = 0.5
_STRENGTH = 50.0
_ROW_WEIGHT = 2.0


class Teacher:
    """Fitted on prompts and control tokens, rows of the data counting double; deterministic for a `random.Random`."""

    def __init__(self, rows: Sequence[Example], written: Sequence[Example]) -> None:
        words = TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[?.!,']")
        characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
        examples = [*rows, *written]
        self._features = make_union(words, characters)
        self._model = LogisticRegression(C=_STRENGTH, max_iter=2000, class_weight="balanced")
        self._model.fit(
            self._features.fit_transform([example.prompt for example in examples]),
            [example.control for example in examples],
            sample_weight=[_ROW_WEIGHT] * len(rows) + [1.0] * len(written),
        )
        self._prompts = [example.prompt.split(" ") for example in [*rows, *rows, *written]]
        self._words = [word for prompt in self._prompts for word in prompt]

    def draw(self, times: int, rng: random.Random) -> list[Example]:
        """`times` disturbed prompts, each with a control token drawn from the teacher's probabilities."""
        prompts = [self._disturb(rng.choice(self._prompts), rng) for _ in range(times)]
        roles = list(self._model.classes_)
        probabilities = self._model.predict_proba(self._features.transform(prompts))
        return [Example(p, rng.choices(roles, q)[0], None) for p, q in zip(prompts, probabilities)]

    def _disturb(self, prompt: Sequence[str], rng: random.Random) -> str:
        words = list(prompt)
        if rng.random() < _SPLICE:
            other = rng.choice(self._prompts)
            words = words[: rng.randint(1, len(words))] + other[rng.randrange(len(other)) :]
        kept = [
            rng.choice(self._words) if chance < _DROP + _SWAP else word
            for word in words[:_MAX_WORDS]
            if (chance := rng.random()) >= _DROP
        ]
        return " ".join(kept) or " ".join(prompt)
