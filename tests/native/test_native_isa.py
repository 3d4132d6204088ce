"""Listing and forcing instruction sets; an unknown name is an error, in the call and in the environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from refusal_edge import _native
from refusal_edge.errors import RefusalEdgeError

DECIDE = """
import numpy as np
from refusal_edge import _native
from refusal_edge.policy import Category, Policy
print(_native.isa_active())
policy = Policy([Category("safety", token_id=0)], respond_token_id=1, min_control_mass=0.0)
print(_native.decide(np.zeros(8, np.float32), policy).outcome)
"""


def in_environment(isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REFUSAL_EDGE_ISA": isa}
    return subprocess.run([sys.executable, "-c", DECIDE], env=environment, capture_output=True, text=True)


def test_serial_is_always_there_and_first() -> None:
    assert _native.isa_names()[0] == "serial"
    assert _native.isa_available("serial")


def test_force_and_return_to_the_best() -> None:
    best = _native.isa_active()
    _native.isa_force("serial")
    assert _native.isa_active() == "serial"
    _native.isa_force(None)
    assert _native.isa_active() == best


@pytest.mark.parametrize("name", ["", "altivec", "SERIAL"])
def test_forcing_an_unknown_one_is_an_error(name: str) -> None:
    with pytest.raises(RefusalEdgeError, match="unknown instruction set"):
        _native.isa_force(name)


@pytest.mark.parametrize("isa", [n for n in _native.isa_names() if _native.isa_available(n)])
def test_the_environment_forces_one(isa: str) -> None:
    result = in_environment(isa)
    assert result.stdout.split() == [isa, "refuse"], result.stderr


def test_an_unknown_one_in_the_environment_fails_every_decision() -> None:
    result = in_environment("altivec")
    assert result.returncode != 0
    assert result.stdout.split() == ["unusable"]
    assert "unknown instruction set" in result.stderr
