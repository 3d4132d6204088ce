"""The policy file: a policy, the pins that tie it to a model and data, and its promises. Schema: policy.schema.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from refusal_edge.calibrate.certificate import Certificate
from refusal_edge.calibrate.fit import METHODS, SCOPES, Calibration
from refusal_edge.calibrate.plan import Uncertified
from refusal_edge.calibrate.scorefile import Header
from refusal_edge.calibrate.thresholds import CERTIFIED
from refusal_edge.errors import InvalidPolicyError
from refusal_edge.numbers import as_integer, shown
from refusal_edge.pins import checked_pins
from refusal_edge.policy import Policy

FORMAT: Final = "refusal-edge-policy"
VERSION: Final = 1
MAX_BYTES: Final = 16 << 20

_REQUIRED_PINS: Final = ("method", "scope", "n", "dataset_sha256", "template_sha256", "policy_id", "created")

Item = TypeVar("Item")


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file holds.

    Attributes:
        policy: with its thresholds.
        calibration: pins, as in `Stamp.calibration`; None for a policy that was not calibrated.
        certificates, uncertified, warnings, fitted: as in `Calibration`.
        target: every option of the calibration. measured: what the policy does on the rows that chose its thresholds.
        rows: which rows these were, see `row_overlap.sketch`.
    """

    policy: Policy
    calibration: dict[str, Any] | None = None
    certificates: tuple[Certificate, ...] = ()
    uncertified: tuple[Uncertified, ...] = ()
    warnings: tuple[str, ...] = ()
    fitted: dict[str, Any] | None = None
    target: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    rows: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, calibration: Calibration, header: Header, created: str, weights_sample: str | None = None
    ) -> PolicyFile:
        """The file of a calibration on the scores of `header`.

        Args:
            created: an ISO date.
            weights_sample: of the scored model, see `pins.weights_sample`; without it no other weights are noticed.
        """
        return cls(
            policy=calibration.policy,
            calibration=_pins(calibration, header, created, weights_sample),
            certificates=calibration.certificates,
            uncertified=calibration.uncertified,
            warnings=calibration.warnings,
            fitted=calibration.fitted,
            target=dataclasses.asdict(calibration.target),
            measured=calibration.measured.to_dict(),
            rows=calibration.rows,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "policy": self.policy.to_dict(),
            "calibration": self.calibration,
            "target": self.target,
            "certificates": [c.to_dict() for c in self.certificates],
            "uncertified": [vars(u) for u in self.uncertified],
            "measured": self.measured,
            "warnings": list(self.warnings),
            "fitted": self.fitted,
            "rows": " ".join(self.rows),
        }

    def write(self, path: str | Path) -> None:
        """Writes or replaces `path`: a reader sees the old file or the new one.

        Raises:
            ConversionError: a folder, or another process is writing it. OSError: as when writing any file.
        """
        from refusal_edge.convert.partfile import part_file

        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        with part_file(Path(path), force=True) as (descriptor, _), open(descriptor, "wb", closefd=False) as file:
            file.write(text.encode())


def _pins(calibration: Calibration, header: Header, created: str, weights_sample: str | None) -> dict[str, Any]:
    """What the GGUF keys `refusal_edge.calibration.*` hold: method, target, and what the thresholds rest on."""
    target = calibration.target
    pins = {
        "method": target.method,
        "scope": calibration.scope,
        "alpha": target.alpha if target.promises else None,
        "delta": target.delta if target.method in ("np", "ltt") else None,
        "n": calibration.n,
        "dataset_sha256": header.dataset_sha256,
        "template_sha256": header.template_sha256,
        "file_type": header.file_type,
        "weights_sha256": header.weights_sha256,
        "weights_sample": weights_sample,
        "policy_id": calibration.policy.policy_id,
        "created": created,
    }
    return {name: value for name, value in pins.items() if value is not None}


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
        pins = None if calibration is None else _complete(checked_pins(calibration))
        return PolicyFile(
            policy=policy,
            calibration=pins,
            certificates=_levelled(_each("certificates", data, Certificate.from_dict, policy), pins or {}),
            uncertified=_each("uncertified", data, _uncertified, policy),
            warnings=_texts("warnings", data.get("warnings", [])),
            fitted=data.get("fitted"),
            target=data.get("target"),
            measured=data.get("measured"),
            rows=tuple(str(data.get("rows", "")).split()),
        )
    except (InvalidPolicyError, KeyError) as error:
        raise InvalidPolicyError(f"{path}: {error}") from None


def _complete(pins: dict[str, Any]) -> dict[str, Any]:
    for name in _REQUIRED_PINS:
        if name not in pins:
            raise InvalidPolicyError(f"calibration.{name} is missing")
    method, scope = pins["method"], pins["scope"]
    if method not in METHODS or scope not in SCOPES:
        raise InvalidPolicyError(f"calibration: unknown method {method!r} or scope {scope!r}")
    if pins["n"] < 0:
        raise InvalidPolicyError(f"calibration.n: expected a number of rows, got {pins['n']}")
    for name, methods in (("alpha", CERTIFIED), ("delta", ("np", "ltt"))):
        if (name in pins) != (method in methods):
            raise InvalidPolicyError(f"calibration.{name}: expected with the methods {', '.join(methods)} alone")
    return pins


def _levelled(certificates: tuple[Certificate, ...], pins: Mapping[str, Any]) -> tuple[Certificate, ...]:
    """The certificates, each of which promises as the pins do."""
    for i, certificate in enumerate(certificates):
        for name in ("alpha", "delta"):
            if (getattr(certificate, name) is None) != (name not in pins):
                raise InvalidPolicyError(f"certificates[{i}].{name}: expected with calibration.{name} alone")
    return certificates


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InvalidPolicyError(f"{name}: expected a list of texts, got {shown(value)}")
    return tuple(value)


def _each(
    name: str, data: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Item], policy: Policy
) -> tuple[Item, ...]:
    items = data.get(name, [])
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise InvalidPolicyError(f"{name}: expected a list of objects, got {shown(items)}")
    found = []
    for i, item in enumerate(items):
        try:
            found.append(read(item))
            named = [item.get("category"), item.get("rows"), *item.get("categories", ()), *item.get("thresholds", ())]
            for slug in named:
                if slug is not None:
                    policy.category(slug)
        except InvalidPolicyError as error:
            raise InvalidPolicyError(f"{name}[{i}]: {error}") from None
    return tuple(found)


def _uncertified(item: Mapping[str, Any]) -> Uncertified:
    n, needed = as_integer(item.get("n")), as_integer(item.get("needed"))
    if set(item) != {"category", "n", "needed"} or not isinstance(item["category"], str) or n is None or needed is None:
        raise InvalidPolicyError(f"expected category, n and needed, got {shown(dict(item))}")
    return Uncertified(item["category"], n, needed)
