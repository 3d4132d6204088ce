"""Which of the model's layers the tests of the backend's graph put on a GPU: none, unless the environment says so."""

from __future__ import annotations

import os

GPU_LAYERS = int(os.environ.get("REFUSAL_EDGE_GPU_LAYERS", "0"))

SHAPE_TOLERANCE = 1e-2 if GPU_LAYERS else 0.0
"""How far a score may move when the same prompt is evaluated in a batch of another shape: on a GPU that is another
matrix multiplication, partly in half precision."""
