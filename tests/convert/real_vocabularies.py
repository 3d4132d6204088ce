"""Real vocabularies for tests: llama.cpp's `ggml-vocab-*.gguf`, from the source distribution of llama-cpp-python.

They are never committed. They are looked for in $REFUSAL_EDGE_VOCAB_DIR, then in the user's cache folder, and fetched
with pip once; tests that need them skip with the reason where that fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from refusal_edge.gguf_file import read_gguf

NAMES = ("gpt-2", "llama-bpe", "llama-spm", "qwen2", "refact", "starcoder")


@dataclass(frozen=True)
class RealVocab:
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]


@cache
def load(name: str) -> RealVocab:
    with read_gguf(folder() / f"ggml-vocab-{name}.gguf") as file:
        column = {key: file.kv.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges", "scores")}
        return RealVocab(
            [token.decode() for token in column["tokens"]],
            column["token_type"].tolist(),
            [merge.decode() for merge in column["merges"] or ()],
            column["scores"].tolist() if column["scores"] is not None else [],
        )


@cache
def folder() -> Path:
    """Where the files lie; skips the calling test if they cannot be had."""
    if given := os.environ.get("REFUSAL_EDGE_VOCAB_DIR"):
        return Path(given)
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "refusal-edge" / "vocabularies"
    if not all((cached / f"ggml-vocab-{name}.gguf").is_file() for name in NAMES):
        _fetch(cached)
    return cached


def _fetch(target: Path) -> None:
    release = f"llama-cpp-python=={version('llama-cpp-python')}"
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, release]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        archives = list(Path(temporary).glob("*.tar.gz"))
        if done.returncode != 0 or not archives:
            reason = (done.stderr.strip().splitlines() or ["it is not a source distribution"])[-1]
            pytest.skip(f"no real vocabularies: pip download {release}: {reason}")
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name.removeprefix("ggml-vocab-").removesuffix(".gguf") in NAMES:
                    source = archive.extractfile(member)
                    assert source is not None
                    part = target / f"{name}.part"  # a whole file or none
                    part.write_bytes(source.read())
                    part.replace(target / name)
