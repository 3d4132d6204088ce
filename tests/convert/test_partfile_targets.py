"""What `convert` may be told to write to, and what it may find to read."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from refusal_edge import demo
from refusal_edge.convert import convert
from refusal_edge.convert.partfile import check_free_space, part_file, part_path
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


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_the_part_file_is_a_regular_file_or_nothing(kind: str, source: Path, tmp_path: Path) -> None:
    part, victim = part_path(tmp_path / "out.gguf"), tmp_path / "victim"
    victim.write_text("precious")
    if kind == "link":
        part.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(part)
    else:
        part.mkdir()
    with pytest.raises(ConversionError, match=f"{part} is not a regular file; remove it"):
        convert(source, tmp_path / "out.gguf", force=True)
    assert os.path.lexists(part)
    assert victim.read_text() == "precious"


def test_a_part_file_of_others_is_left_alone(source: Path, tmp_path: Path) -> None:
    """Browsers and download tools end the names of theirs in .part, too."""
    (tmp_path / "out.gguf.part").write_text("half of a download")
    convert(source, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf.part").read_text() == "half of a download"


def test_what_an_earlier_run_left_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.gguf"
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConversionError, match=r"needs 5 MB, .* has 3 MB free; free"):
        check_free_space(target, 5_000_000)
    part_path(target).write_bytes(bytes(4_000_000))
    check_free_space(target, 5_000_000)
    expected = r"needs 9 MB, .* has 7 MB free \(with 4 MB of out\.gguf\.refusal-edge\.part, left by an earlier run"
    with pytest.raises(ConversionError, match=expected):
        check_free_space(target, 9_000_000)


def test_a_part_file_that_became_the_target_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has opened the part file, and gets the lock when its writer has renamed it and is gone."""
    target = tmp_path / "out.gguf"
    lock, first = fcntl.flock, part_file(target, force=False)
    os.write(first.__enter__()[0], b"finished")

    def lock_late(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        first.__exit__(None, None, None)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with pytest.raises(ConversionError, match="exists; use --force"), part_file(target, force=False) as (second, _):
        os.write(second, b"half")
    assert target.read_bytes() == b"finished"
    assert list(tmp_path.iterdir()) == [target]


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
