from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_model import MakeToy, Toy

from refusal_edge import Llama


@pytest.fixture(scope="session")
def make_toy(tmp_path_factory: pytest.TempPathFactory) -> MakeToy:
    """Writes a toy model; the arguments are those of `Toy`."""

    def make(**changes: object) -> Path:
        return Toy(**changes).write(tmp_path_factory.mktemp("toy") / "toy.gguf")

    return make


@pytest.fixture(scope="session")
def toy_path(make_toy: MakeToy) -> Path:
    return make_toy()


@pytest.fixture(scope="module")
def llm(toy_path: Path) -> Iterator[Llama]:
    """The sealed toy."""
    model = Llama(toy_path, n_ctx=512, verbose=False)
    yield model
    model.close()


@pytest.fixture(autouse=True)
def nothing_is_remembered(request: pytest.FixtureRequest) -> None:
    """A model that several tests share decides each one's prompts anew."""
    for name in {"llm", "any_llm"} & set(request.fixturenames):
        request.getfixturevalue(name)._boundaries.clear()


@pytest.fixture(scope="module", params=["sealed", "control", "user"])
def any_llm(make_toy: MakeToy, request: pytest.FixtureRequest) -> Iterator[Llama]:
    """The toy with its control tokens typed in each of the three ways."""
    model = Llama(make_toy(token_type=request.param), n_ctx=1024, verbose=False)
    yield model
    model.close()
