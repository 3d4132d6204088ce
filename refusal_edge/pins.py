"""Whether a calibration still belongs to the file and the policy that it is found with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from refusal_edge.errors import InvalidPolicyError
from refusal_edge.gguf_file import GGUFFile, TensorInfo, read_gguf
from refusal_edge.keys import CALIBRATION_PINS, PREFIX
from refusal_edge.policy import Policy

SAMPLED_BLOCKS: Final = 16
BLOCK_BYTES: Final = 4096
SMALLEST_LEVEL: Final = 1e-6
"""Of alpha and delta: GGUF keys hold six decimals."""


def broken_pins(
    calibration: Mapping[str, Any],
    metadata: Mapping[str, str],
    policy: Policy | None = None,
    path: str | os.PathLike[str] | None = None,
) -> list[str]:
    """One line for each pin of `refusal_edge.calibration.*` that is contradicted.

    Args:
        calibration: `Stamp.calibration` or `PolicyFile.calibration`.
        metadata: the loaded file's keys as llama.cpp prints them.
        policy: what the calibration came with; None leaves its thresholds unchecked.
        path: the loaded file; None leaves its weights unchecked.
    """
    found: dict[str, Any] = {
        "file_type": _integer(metadata.get("general.file_type")),
        "template_sha256": template_sha256(metadata.get("tokenizer.chat_template", "")),
    }
    if path is not None and "weights_sample" in calibration:
        found["weights_sample"] = weights_sample(path)
    lines = [
        f"{name} is {found[name]}, calibrated for {calibration[name]}"
        for name in found
        if name in calibration and calibration[name] != found[name]
    ]
    if policy is not None and is_edited(calibration, policy):
        lines.append("the policy was changed after it was calibrated; run `refusal-edge calibrate` again")
    return lines


def is_edited(calibration: Mapping[str, Any], policy: Policy) -> bool:
    """Whether a threshold, or anything else of the policy, is not what was calibrated."""
    return bool(calibration.get("policy_id") != policy.policy_id)


def checked_pins(calibration: object) -> dict[str, Any]:
    """The pins of a policy file or of a scores file, known by name and of their types.

    Raises:
        InvalidPolicyError: they are not.
    """
    if not isinstance(calibration, Mapping):
        raise InvalidPolicyError(f"calibration: expected an object or null, got {calibration!r}")
    pins: dict[str, Any] = dict(calibration)
    for name, value in pins.items():
        kind = CALIBRATION_PINS.get(name)
        if kind is None or isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise InvalidPolicyError(f"calibration.{name}: unknown pin, or a value of the wrong type: {value!r}")
        if kind is float and not SMALLEST_LEVEL <= pins[name] <= 1 - SMALLEST_LEVEL:
            raise InvalidPolicyError(
                f"calibration.{name}: expected a number in [{SMALLEST_LEVEL:g}, {1 - SMALLEST_LEVEL:g}], got {value!r}"
            )
    return pins


def template_sha256(template: str) -> str:
    """SHA-256 of a chat template's UTF-8 text, in hexadecimal."""
    return hashlib.sha256(template.encode()).hexdigest()


def weights_sample(path: str | os.PathLike[str]) -> str:
    """A fingerprint of the weights that does not read them all, in hexadecimal.

    SHA-256 over name, type and shape of every tensor, and of its bytes: all of them up to 64 KiB, else 16 blocks of
    4 KiB spread evenly from the first to the last, and the rows of the control tokens. Another model, training run,
    quantisation or merged adapter changes it; whoever edits a few bytes elsewhere can avoid that. Other keys (a new
    policy, say) leave it as it is.
    """
    digest = hashlib.sha256()
    with read_gguf(path) as model, open(path, "rb") as file:
        for name, tensor in sorted(model.tensors.items()):
            digest.update(f"{name}\0{tensor.ggml_type}\0{tuple(tensor.shape)}\0".encode())
            for begin, n_bytes in (*_spread(tensor.n_bytes), *_control_rows(model, tensor)):
                file.seek(tensor.offset + begin)
                digest.update(file.read(n_bytes))
    return digest.hexdigest()


def _spread(n_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) to read of a tensor."""
    if n_bytes <= SAMPLED_BLOCKS * BLOCK_BYTES:
        yield 0, n_bytes
        return
    for i in range(SAMPLED_BLOCKS):
        yield (n_bytes - BLOCK_BYTES) * i // (SAMPLED_BLOCKS - 1), BLOCK_BYTES


def _control_rows(model: GGUFFile, tensor: TensorInfo) -> Iterator[tuple[int, int]]:
    """Of the tensors with a row for each token: a fine-tune may move the rows of its new tokens alone."""
    if tensor.shape[-1] != model.n_vocab() or len(tensor.shape) != 2:
        return
    row_bytes = tensor.n_bytes // tensor.shape[-1]
    token_ids = {value for key, value in model.kv.items() if key.startswith(PREFIX) and key.endswith("token_id")}
    for token_id in sorted(i for i in token_ids if isinstance(i, int) and 0 <= i < tensor.shape[-1]):
        yield token_id * row_bytes, row_bytes


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
