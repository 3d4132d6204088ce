"""The converted model computes what transformers computes, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cases import CASES
from checkpoints import write_checkpoint

from refusal_edge.convert import convert

torch = pytest.importorskip("torch", reason="holds our conversion against transformers, which needs torch")
transformers = pytest.importorskip("transformers", reason="holds our conversion against transformers")

DEMO = Path(__file__).parents[2] / "examples" / "demo_model" / "checkpoint"
N_TOKENS = 96  # beyond the sliding windows of the tiny Gemmas


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny-model", **CASES[name].options)
    convert(folder, tmp_path / "out.gguf", outtype="f32")
    tokens = np.random.default_rng(7).integers(0, 260, N_TOKENS).tolist()
    theirs, ours = logits_of_transformers(folder, tokens), logits_of_llama_cpp(tmp_path / "out.gguf", tokens)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-3
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()


def test_demo_model_equals_transformers(tmp_path: Path) -> None:
    report = convert(DEMO, tmp_path / "demo.gguf", outtype="f32", preset="coconot-5")
    tokens = np.random.default_rng(8).integers(0, report.n_vocab, N_TOKENS).tolist()
    theirs, ours = logits_of_transformers(DEMO, tokens), logits_of_llama_cpp(tmp_path / "demo.gguf", tokens)
    assert np.abs(ours - theirs).max() <= 1e-3
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()


def logits_of_transformers(folder: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: Any = model.eval()(torch.tensor([tokens])).logits[0]
    return np.asarray(logits.float().numpy())


def logits_of_llama_cpp(path: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    from llama_cpp import Llama

    f32_cache = {"type_k": 0, "type_v": 0}
    llm = Llama(str(path), n_ctx=256, logits_all=True, verbose=False, flash_attn=False, n_threads=2, **f32_cache)
    try:
        llm.eval(tokens)
        return np.array(llm.scores[: len(tokens)])
    finally:
        llm.close()
