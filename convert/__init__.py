"""From a Hugging Face refusal-token fine-tune to one self-contained GGUF file, with NumPy alone."""

from __future__ import annotations

from .conversion import Report, convert

__all__ = ["Report", "convert"]
