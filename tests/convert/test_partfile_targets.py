"""What `convert` may be told to write to, and what it may find to read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from refusal_edge import demo
from refusal_edge.convert import convert
from refusal_edge.errors import ConversionError, FormatError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo.checkpoint(), tmp_path / "source"))


def test_a_file_of_the_checkpoint_is_never_replaced(source: Path) -> None:
    weights = (source / "model.safetensors").read_bytes()
    with pytest.raises(ConversionError, match="is a file of the checkpoint"):
        convert(source, source / "model.safetensors", force=True)
    assert (source / "model.safetensors").read_bytes() == weights


def test_a_pipe_is_never_replaced(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConversionError, match="not a regular file"):
        convert(source, tmp_path / "pipe", force=True)
    assert (tmp_path / "pipe").is_fifo()


def test_nothing_is_written_through_a_link_beside_the_target(source: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out.gguf.vocab.part").symlink_to(victim)
    convert(source, tmp_path / "out.gguf")
    assert victim.read_text() == "precious"


def test_a_shard_that_is_a_pipe_does_not_hang(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    os.mkfifo(source / "model-00001-of-00001.safetensors")
    with pytest.raises(FormatError, match="not a regular file"):
        convert(source, tmp_path / "out.gguf")


def test_a_model_card_of_nested_aliases_does_not_grow(source: Path, tmp_path: Path) -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else 'x'}]" for i in range(12)]
    (source / "README.md").write_text("---\n" + "\n".join([*levels, "base_model: *l11"]) + "\n---\n")
    convert(source, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").stat().st_size < 10_000_000
