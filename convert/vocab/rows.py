"""One entry per embedding row, filled from several files and then made fit for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from gguf import TokenType

from refusal_edge.errors import ConversionError

from ..jsonfile import shown
from .model import AddedToken, token_type

ADDED_SCORE = -1000.0
HOLE_SCORE = -10000.0


class Rows:
    """Text, type and score of every embedding row. A row that nothing fills is padding: it never becomes text."""

    def __init__(self, n_rows: int) -> None:
        self.tokens = [b"[PAD%d]" % i for i in range(n_rows)]
        self.types = [int(TokenType.UNUSED)] * n_rows
        self.scores: npt.NDArray[np.float32] = np.full(n_rows, HOLE_SCORE, dtype=np.float32)
        self.beyond: dict[int, str] = {}

    def put(self, token_id: int, text: bytes, kind: TokenType, score: float = 0.0) -> None:
        if token_id >= len(self.tokens):
            self.beyond[token_id] = text.decode(errors="replace")
            return
        self.tokens[token_id] = text
        self.types[token_id] = int(kind)
        self.scores[token_id] = score

    def put_added(self, tokens: Iterable[AddedToken]) -> None:
        """Added tokens replace what the trained vocabulary says about their ids."""
        for token in tokens:
            kind = token_type(token)
            text = token.content if kind is TokenType.CONTROL else token.content.replace("▁", " ")
            self.put(token.id, text.encode(errors="replace"), kind, ADDED_SCORE)

    def check_size(self, folder: object) -> None:
        """
        Raises:
            ConversionError: a token has no embedding row; names the tokens.
        """
        if not self.beyond:
            return
        listed = ", ".join(f"{i} {shown(text, 40)}" for i, text in sorted(self.beyond.items())[:8])
        more = f" and {len(self.beyond) - 8} more" if len(self.beyond) > 8 else ""
        raise ConversionError(
            f"{folder}: the tokenizer has tokens without an embedding row (the matrix has {len(self.tokens)} rows): "
            f"{listed}{more}; call model.resize_token_embeddings(len(tokenizer)) and save the model again"
        )

    def make_unique(self) -> list[str]:
        """Gives empty and duplicate texts a text of their own: llama.cpp aborts on a duplicate. Returns warnings."""
        warnings = []
        owner: dict[bytes, int] = {}
        for i, text in enumerate(self.tokens):
            if not text:
                self._retire(i, b"[EMPTY_%d]" % i)
            elif text in owner:
                self._retire(i, b"[DUPLICATE_%d]" % i)
                warnings.append(
                    f"tokens {owner[text]} and {i} have the same text {shown(text.decode(errors='replace'))}: "
                    f"token {i} was renamed and prints nothing"
                )
            owner[self.tokens[i]] = i
        return warnings

    def _retire(self, token_id: int, text: bytes) -> None:
        self.tokens[token_id] = text
        self.types[token_id] = int(TokenType.UNUSED)
