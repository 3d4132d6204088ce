"""The refusal_edge.* keys, both ways."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from refusal_edge.errors import MetadataError
from refusal_edge.keys import Stamp, is_stamped
from refusal_edge.policy import Category

STAMP = Stamp(
    respond_token_id=128261,
    categories=(
        Category("humanizing", 128256, "off", "Humanizing requests"),
        Category("safety", 128259, 0.3, "Requests with safety concerns"),
        Category("unsupported", 128260, "model"),
    ),
    rule="sum",
    score="vocab",
    temperature=0.7,
    min_control_mass=0.25,
    token_type="control",
    fallback="refuse",
    sum_threshold=0.123457,
    reachable="special",
    calibration={"method": "np", "scope": "pooled", "alpha": 0.05, "delta": 0.1, "n": 59, "dataset_sha256": "ab",
                 "template_sha256": "cd", "file_type": 15, "weights_sha256": "ef", "weights_sample": "01",
                 "policy_id": "23", "created": "2024-05-01"},
)  # fmt: skip


def as_written(stamp: Stamp) -> dict[str, Any]:
    """As a GGUF file gives them back: floats went through 32 bits."""
    return {k: struct.unpack("<f", struct.pack("<f", v))[0] if isinstance(v, float) else v for k, v, _ in stamp.to_kv()}


def as_strings(stamp: Stamp) -> dict[str, str]:
    """As llama_model_meta_val_str gives them: six decimals."""
    return {k: f"{v:.6f}" if isinstance(v, float) else str(v) for k, v in as_written(stamp).items()}


@pytest.mark.parametrize("form", [as_written, as_strings])
@pytest.mark.parametrize(
    "stamp", [STAMP, Stamp(2, (Category("refuse", 1),)), replace(STAMP, calibration={"method": "f1"})]
)
def test_round_trip(stamp: Stamp, form: Callable[[Stamp], dict[str, Any]]) -> None:
    other_keys = {"general.name": "x", "refusal_edge.later_key": 7}
    assert Stamp.from_kv({**form(stamp), **other_keys}, n_vocab=128262) == stamp
    assert Stamp.from_kv(form(stamp)).policy == stamp.policy


def test_every_reader_sees_the_same_threshold() -> None:
    """A calibrated threshold has more digits than llama.cpp prints."""
    fine = Stamp(2, (Category("a", 1, 0.123456789),), temperature=1.23456789)
    typed, printed = Stamp.from_kv(as_written(fine)), Stamp.from_kv(as_strings(fine))
    assert typed == printed
    assert typed.categories[0].threshold == 0.123457


def test_the_keys_are_those_of_the_design() -> None:
    kv = {key: (value, kind.name) for key, value, kind in STAMP.to_kv()}
    assert all(key.startswith("refusal_edge.") for key in kv)
    assert kv["refusal_edge.version"] == (1, "UINT32")
    assert kv["refusal_edge.respond_token_id"] == (128261, "UINT32")
    assert kv["refusal_edge.category.count"] == (3, "UINT32")
    assert kv["refusal_edge.category.1.id"] == ("safety", "STRING")
    assert kv["refusal_edge.category.1.title"] == ("Requests with safety concerns", "STRING")
    assert kv["refusal_edge.category.1.token_id"] == (128259, "UINT32")
    assert [kv[f"refusal_edge.category.{i}.threshold"] for i in range(3)] == [
        (2.0, "FLOAT32"),
        (0.3, "FLOAT32"),
        (-1.0, "FLOAT32"),
    ]
    assert kv["refusal_edge.token_type"] == ("control", "STRING")
    assert kv["refusal_edge.calibration.n"] == (59, "UINT32")
    assert kv["refusal_edge.calibration.scope"] == ("pooled", "STRING")
    assert kv["refusal_edge.calibration.weights_sample"] == ("01", "STRING")


def test_no_keys_says_how_to_add_them() -> None:
    assert not is_stamped({"general.name": "x"})
    with pytest.raises(MetadataError, match="refusal-edge annotate"):
        Stamp.from_kv({"general.name": "x"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "version: expected 1, got 2: upgrade"),
        ("version", "x", "version: expected an integer, got 'x'"),
        ("version", True, "expected an integer, got True"),
        ("respond_token_id", None, "respond_token_id is missing"),
        ("respond_token_id", -1, "token id -1 is out of range"),
        ("respond_token_id", 128262, "token id 128262 is out of range; the vocabulary has 128262 tokens"),
        ("respond_token_id", "1.0", "expected an integer, got '1.0'"),
        ("respond_token_id", 128259, "is used for both 'respond' and 'safety'"),
        ("category.count", 0, "expected 1 to 64, got 0"),
        ("category.count", 65, "expected 1 to 64, got 65"),
        ("category.count", 4, "category.3.id is missing"),
        ("category.1.id", "humanizing", "the id 'humanizing' is used twice"),
        ("category.1.id", "Safety!", "lower-case letters"),
        ("category.1.id", 5, "expected a string, got 5"),
        ("category.1.token_id", 128256, "token id 128256 is used for both"),
        ("category.1.threshold", 1.5, r"expected a number in \[0, 1\]"),
        ("category.1.threshold", float("nan"), r"expected a number in \[0, 1\]"),
        ("category.1.threshold", "high", "expected a number, got 'high'"),
        ("rule", "none", "rule: expected one of"),
        ("score", "odds", "score: expected one of"),
        ("temperature", 0.0, "temperature: expected a finite number > 0"),
        ("temperature", float("inf"), "temperature: expected a finite number > 0"),
        ("min_control_mass", 2.0, r"min_control_mass: expected a number in \[0, 1\]"),
        ("fallback", "guess", "fallback: expected one of"),
        ("threshold", 7.0, "sum_threshold"),
        ("token_type", "loose", "token_type: expected one of sealed, control, user"),
        ("reachable", "often", "reachable: expected one of never, special, text"),
        ("calibration.n", "many", "calibration.n: expected an integer"),
    ],
)
def test_what_contradicts_itself_is_refused(key: str, value: Any, message: str) -> None:
    kv = {k: v for k, v, _ in STAMP.to_kv()} | {f"refusal_edge.{key}": value}
    if value is None:
        del kv[f"refusal_edge.{key}"]
    with pytest.raises(MetadataError, match=message) as caught:
        Stamp.from_kv(kv, n_vocab=128262)
    assert "\n" not in str(caught.value)
