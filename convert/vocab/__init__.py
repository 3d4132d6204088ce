"""Vocabularies: from what transformers saves to what llama.cpp reads."""

from __future__ import annotations

from .load import load_vocab
from .model import AddedToken, Vocab

__all__ = ["AddedToken", "Vocab", "load_vocab"]
