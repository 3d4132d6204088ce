"""Whether the calibration stored in a file still belongs to that file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any


def broken_pins(calibration: Mapping[str, Any], metadata: Mapping[str, str]) -> list[str]:
    """One line for each pin of `refusal_edge.calibration.*` that the loaded file contradicts.

    Args:
        calibration: `Stamp.calibration`.
        metadata: the file's keys as llama.cpp prints them.
    """
    found = {
        "file_type": _integer(metadata.get("general.file_type")),
        "template_sha256": template_sha256(metadata.get("tokenizer.chat_template", "")),
    }
    return [
        f"{name} is {found[name]}, calibrated for {calibration[name]}"
        for name in found
        if name in calibration and calibration[name] != found[name]
    ]


def template_sha256(template: str) -> str:
    """SHA-256 of a chat template's UTF-8 text, in hexadecimal."""
    return hashlib.sha256(template.encode()).hexdigest()


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
