"""What a policy does to scored rows, as one self-contained HTML page and PNGs."""

from __future__ import annotations

from refusal_edge.report.facts import Facts, collect
from refusal_edge.report.page import warnings_of, write_report

__all__ = ["Facts", "collect", "warnings_of", "write_report"]
