"""Thresholds with a guarantee, from scored rows: `read_scores`, `calibrate`, `Target`. Needs the extra "calibrate"
(scipy).
"""

from __future__ import annotations

from refusal_edge.calibrate.certificate import Certificate
from refusal_edge.calibrate.fit import Calibration, Target, calibrate
from refusal_edge.calibrate.policy_file import PolicyFile, read_policy_file
from refusal_edge.calibrate.rows import DataFile, Row
from refusal_edge.calibrate.scorefile import ScoreTable, read_scores

__all__ = [
    "Calibration",
    "Certificate",
    "DataFile",
    "PolicyFile",
    "Row",
    "ScoreTable",
    "Target",
    "calibrate",
    "read_policy_file",
    "read_scores",
]
