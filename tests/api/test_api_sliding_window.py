"""A model with a sliding window whose cache holds no more than the window: what was forgotten is computed again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refusal_edge import Decision, Llama
from refusal_edge.convert import convert

sys.path.append(str(Path(__file__).parents[1] / "convert"))
from checkpoints import Shape, write_checkpoint


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gemma 3 with a window of 32 tokens."""
    folder = tmp_path_factory.mktemp("gemma3")
    checkpoint = write_checkpoint(folder / "checkpoint", "gemma3", vocab="spm", tied=True, shape=Shape(layers=6))
    convert(checkpoint, folder / "out.gguf", outtype="f32")
    return folder / "out.gguf"


@pytest.fixture
def narrow(gemma: Path) -> Iterator[Llama]:
    llm = Llama(gemma, n_ctx=4096, swa_full=False, verbose=False, n_threads=1, n_threads_batch=1)
    yield llm
    llm.close()


def ids(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(10, 250, size=n).tolist()


def same_scores(a: Decision, b: Decision) -> bool:
    return max(abs(a.scores[slug] - b.scores[slug]) for slug in a.scores) < 1e-3


def test_a_shorter_prompt_after_a_long_one(narrow: Llama, gemma: Path) -> None:
    long = ids(1500, 1)
    short = [*long[:150], *ids(3, 2)]
    narrow._decide_ids(long, narrow.policy)
    fresh = Llama(gemma, n_ctx=4096, swa_full=False, verbose=False, n_threads=1, n_threads_batch=1)
    assert same_scores(narrow._decide_ids(short, narrow.policy), fresh._decide_ids(short, fresh.policy))
    fresh.close()


def test_a_batch_with_a_long_shared_beginning(narrow: Llama) -> None:
    shared = ids(3000, 3)
    prompts = [[*shared, *ids(4 + i, i)] for i in range(5)]
    many = list(narrow._batch_decider.decide(prompts, narrow.policy, calibrated=False))
    assert all(same_scores(narrow._decide_ids(prompt, narrow.policy), b) for prompt, b in zip(prompts, many))
