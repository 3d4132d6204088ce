"""Raw logits of the last few boundaries, so that asking again gives the same decision.

llama.cpp's sums depend on how a prompt was cut into batches, and that on what the context already held: the same prompt
evaluated twice may score about 1e-5 differently. Near a threshold that would let "regenerate" change a decision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

CAPACITY: Final = 8
"""Boundaries kept; one takes 4 bytes for each token of the vocabulary."""


class Boundaries:
    """Prompt ids -> float32 logits of shape (n_vocab,); forgets the boundary that was not asked for the longest."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._logits: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()

    def get(self, ids: Sequence[int]) -> npt.NDArray[np.float32] | None:
        """The logits that followed exactly these ids, if they are still kept."""
        key = _key(ids)
        if key in self._logits:
            self._logits.move_to_end(key)
        return self._logits.get(key)

    def put(self, ids: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
        """Keeps a copy of `logits`."""
        self._logits[_key(ids)] = logits.copy()
        while len(self._logits) > self._capacity:
            self._logits.popitem(last=False)

    def clear(self) -> None:
        self._logits.clear()


def _key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype=np.int32).tobytes()
