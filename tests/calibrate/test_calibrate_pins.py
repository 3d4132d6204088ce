"""What ties a calibration to weights, template, file type and thresholds."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_scores import POLICY

from refusal_edge import cli
from refusal_edge.gguf_file import read_gguf
from refusal_edge.keys import Stamp
from refusal_edge.pins import BLOCK_BYTES, broken_pins, template_sha256, weights_sample

METADATA = {"general.file_type": "1", "tokenizer.chat_template": "{{ messages }}"}
PINS = {
    "method": "np",
    "file_type": 1,
    "template_sha256": template_sha256("{{ messages }}"),
    "policy_id": POLICY.policy_id,
}


def with_byte_changed(gguf: Path, folder: Path, tensor: str, place: int) -> Path:
    with read_gguf(gguf) as file:
        offset = file.tensors[tensor].offset
    data = bytearray(gguf.read_bytes())
    data[offset + place] ^= 1
    (folder / "changed.gguf").write_bytes(data)
    return folder / "changed.gguf"


def test_a_policy_that_was_changed_is_not_the_calibrated_one() -> None:
    assert broken_pins(PINS, METADATA, POLICY) == []
    (line,) = broken_pins(PINS, METADATA, POLICY.replace(safety=0.001))
    assert "the policy was changed after it was calibrated" in line
    without = {name: value for name, value in PINS.items() if name != "policy_id"}
    assert broken_pins(without, METADATA, POLICY) == [line]


def test_other_weights_break_the_pin(demo_gguf: Path, tmp_path: Path) -> None:
    pins = {**PINS, "weights_sample": weights_sample(demo_gguf)}
    assert broken_pins(pins, METADATA, POLICY, demo_gguf) == []
    other = with_byte_changed(demo_gguf, tmp_path, "output_norm.weight", 5)
    (line,) = broken_pins(pins, METADATA, POLICY, other)
    assert line == f"weights_sample is {weights_sample(other)}, calibrated for {weights_sample(demo_gguf)}"


def test_the_rows_of_the_control_tokens_are_part_of_the_sample(demo_gguf: Path, tmp_path: Path) -> None:
    """A fine-tune may move nothing else. Bytes of another row between two blocks are what the sample does not see."""
    with read_gguf(demo_gguf) as file:
        stamp, tensor = Stamp.from_kv(file.kv), file.tensors["token_embd.weight"]
    row_bytes, n_rows = tensor.n_bytes // tensor.shape[1], tensor.shape[1]
    assert tensor.n_bytes > 40 * BLOCK_BYTES
    before = weights_sample(demo_gguf)
    for token_id in stamp.policy.control_token_ids:
        changed = with_byte_changed(demo_gguf, tmp_path, tensor.name, token_id * row_bytes + row_bytes // 2)
        assert weights_sample(changed) != before
    unseen = with_byte_changed(demo_gguf, tmp_path, tensor.name, tensor.n_bytes // 2)
    assert n_rows // 2 not in stamp.policy.control_token_ids
    assert weights_sample(unseen) == before
    for place in (0, tensor.n_bytes - 1):
        assert weights_sample(with_byte_changed(demo_gguf, tmp_path, tensor.name, place)) != before


def test_a_file_with_another_policy_holds_the_same_weights(demo_gguf: Path, scores_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibrated.gguf"
    assert cli.main(["calibrate", str(demo_gguf), str(scores_path), "--write", str(out)]) == 0
    with read_gguf(out) as file:
        stamp = Stamp.from_kv(file.kv)
    assert stamp.calibration is not None
    assert stamp.calibration["weights_sample"] == weights_sample(demo_gguf) == weights_sample(out)
    assert stamp.calibration["scope"] == "pooled"
    assert stamp.calibration["policy_id"] == stamp.policy.policy_id


@pytest.mark.parametrize("changes", [{"file_type": 7}, {"template_sha256": "1" * 64}])
def test_another_type_or_template_breaks_the_pin(changes: dict[str, object]) -> None:
    (line,) = broken_pins({**PINS, **changes}, METADATA)
    assert line.startswith(f"{next(iter(changes))} is ")
