"""What more than one test folder needs."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded demo model, converted once for the whole run."""
    from refusal_edge import demo
    from refusal_edge.convert import convert

    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(demo.checkpoint(), path)
    return path
