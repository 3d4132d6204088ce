"""What a policy does to scored rows, as one self-contained HTML page and PNGs."""

from __future__ import annotations

from refusal_edge.report.facts import Facts, collect
from refusal_edge.report.page import write_report

__all__ = ["Facts", "collect", "write_report"]
