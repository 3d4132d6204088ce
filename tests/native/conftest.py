from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from native_session import Session
from tiny_model import write_tiny_model

from refusal_edge import host


@pytest.fixture(scope="session", autouse=True)
def bound() -> None:
    host.bind()


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A context of a model with 4,000 tokens, its logits overwritable."""
    path: Path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    with Session(write_tiny_model(path, n_vocab=4000)) as opened:
        yield opened
