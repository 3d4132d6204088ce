"""The policy file: a policy, the pins that tie it to a model and data, and its promises. Schema:
schemas/policy.schema.json.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from refusal_edge.calibrate.fit import Calibration
from refusal_edge.calibrate.scorefile import Header
from refusal_edge.errors import InvalidPolicyError
from refusal_edge.keys import CALIBRATION_PINS
from refusal_edge.policy import Policy

FORMAT: Final = "refusal-edge-policy"
VERSION: Final = 1
MAX_BYTES: Final = 16 << 20

_REQUIRED_PINS: Final = ("method", "n", "dataset_sha256", "template_sha256", "created")


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file holds.

    Attributes:
        policy: with its thresholds.
        calibration: pins, as in `Stamp.calibration`; None for a policy that was not calibrated.
        certificates, uncertified, warnings: for people and reports.
    """

    policy: Policy
    calibration: dict[str, Any] | None = None
    certificates: tuple[dict[str, Any], ...] = ()
    uncertified: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    fitted: dict[str, Any] | None = None

    @classmethod
    def of(cls, calibration: Calibration, header: Header, created: str) -> PolicyFile:
        """The file of a calibration on the scores of `header`; `created` is an ISO date."""
        return cls(
            policy=calibration.policy,
            calibration=pins(calibration, header, created),
            certificates=tuple(_finite(c.to_dict()) for c in calibration.certificates),
            uncertified=tuple(vars(u) for u in calibration.uncertified),
            warnings=calibration.warnings,
            fitted=calibration.fitted,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "policy": self.policy.to_dict(),
            "calibration": self.calibration,
            "certificates": list(self.certificates),
            "uncertified": list(self.uncertified),
            "warnings": list(self.warnings),
            "fitted": self.fitted,
        }

    def write(self, path: str | Path) -> None:
        """Writes beside `path` first, so that a reader sees the old file or the new one."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)


def pins(calibration: Calibration, header: Header, created: str) -> dict[str, Any]:
    """What the GGUF keys `refusal_edge.calibration.*` hold: method, target, and what the thresholds rest on."""
    target = calibration.target
    promise = {"alpha": target.alpha, "delta": target.delta} if target.method in ("np", "ltt") else {}
    if target.method == "crc":
        promise = {"alpha": target.alpha}
    file_type = {} if header.file_type is None else {"file_type": header.file_type}
    return {
        "method": target.method,
        **promise,
        "n": calibration.n,
        "dataset_sha256": header.dataset_sha256,
        "template_sha256": header.template_sha256,
        **file_type,
        "created": created,
    }


def read_policy_file(path: str | Path) -> PolicyFile:
    """Reads a policy file.

    Raises:
        InvalidPolicyError: not one, a version that this release does not know, or a value out of range.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MAX_BYTES).decode("utf-8"))
        if data["format"] != FORMAT:
            raise ValueError
        version, calibration = data["version"], data["calibration"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidPolicyError(f"{path}: expected a policy file; make one with `refusal-edge calibrate`") from None
    if version != VERSION:
        raise InvalidPolicyError(f"{path}: policy file version {version!r}, this release reads {VERSION}")
    try:
        policy = Policy.from_dict(data["policy"])
    except (InvalidPolicyError, KeyError) as error:
        raise InvalidPolicyError(f"{path}: {error}") from None
    return PolicyFile(
        policy=policy,
        calibration=None if calibration is None else _checked_pins(path, calibration),
        certificates=_objects(path, "certificates", data.get("certificates", [])),
        uncertified=_objects(path, "uncertified", data.get("uncertified", [])),
        warnings=tuple(map(str, data.get("warnings") or ())),
        fitted=data.get("fitted"),
    )


def _checked_pins(path: Path, calibration: Any) -> dict[str, Any]:
    if not isinstance(calibration, Mapping):
        raise InvalidPolicyError(f"{path}: calibration: expected an object or null, got {calibration!r}")
    checked: dict[str, Any] = dict(calibration)
    for name, value in checked.items():
        kind = CALIBRATION_PINS.get(name)
        if kind is None or isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise InvalidPolicyError(
                f"{path}: calibration.{name}: unknown pin, or a value of the wrong type: {value!r}"
            )
        if kind is float and not 0 < checked[name] < 1:
            raise InvalidPolicyError(f"{path}: calibration.{name}: expected a number in (0, 1), got {value!r}")
    for name in _REQUIRED_PINS:
        if name not in checked:
            raise InvalidPolicyError(f"{path}: calibration.{name} is missing")
    return checked


def _objects(path: Path, name: str, value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidPolicyError(f"{path}: {name}: expected a list of objects")
    return tuple(value)


def _finite(certificate: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinities: a cut at one is null."""
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in certificate.items()}
