"""Control tokens whose embedding was never trained: the fine-tune that should have done so was saved without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .control import ControlTokens
from .jsonfile import shown
from .plan import EMBEDDING, HEAD
from .rows import OpenFiles, Rows, to_float32


def untrained_tokens(sources: Mapping[str, Rows], control: ControlTokens) -> Iterator[str]:
    """Yields a warning for every matrix in which control tokens have rows that are zero or equal to each other."""
    with OpenFiles() as files:
        for name in (EMBEDDING, HEAD):
            if name not in sources:
                continue
            rows = sources[name]
            vectors = {token: to_float32(rows.read(files, token.id, token.id + 1), rows.dtype)[0] for token in control}
            distinct = {vector.tobytes() for vector in vectors.values()}
            zero = [token for token, vector in vectors.items() if not vector.any()]
            if zero:
                yield f"the row of token {zero[0].id} {shown(zero[0].text)} in {name} is zero: it was never trained"
            elif len(distinct) < len(vectors):
                yield f"several control tokens have the same row in {name}: they were never trained"
