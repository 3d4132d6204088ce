"""Whatever the bytes of a safetensors file, an index or a configuration: a value or one of our errors, soon."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import write_checkpoint, write_safetensors
from fuzzing import SEED, message_of, mutations

from refusal_edge.convert.checkpoint import open_checkpoint
from refusal_edge.convert.plan import make_plan, vocabulary_rows
from refusal_edge.convert.rows import StoredRows
from refusal_edge.convert.safetensors import read_header, read_weights
from refusal_edge.convert.types import OUTTYPES


def test_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, [("a", np.zeros((2, 3), np.float32)), ("b", np.ones(5, np.float32))])
    seed, accepted, refused = path.read_bytes(), 0, 0
    for number, data in mutations([seed]):
        path.write_bytes(data)
        message = message_of(number, lambda: read_header(path))
        accepted += message is None
        refused += message is not None
    assert refused > 100
    assert accepted > 0  # mutations of the data alone


def test_index(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    for number, data in mutations([index.read_bytes()]):
        index.write_bytes(data)
        message_of(number, lambda: read_weights(folder))


def test_configuration(tmp_path: Path) -> None:
    """Values of every type in every place of config.json: refused in one line, or planned with sizes that add up."""
    folders = [write_checkpoint(tmp_path / arch, arch) for arch in ("llama", "gemma3", "phi3", "granite")]
    seeds = [(folder, json.loads((folder / "config.json").read_text())) for folder in folders]
    planned = 0
    for number, _ in mutations([b"x"]):
        rng = random.Random(f"{SEED}/{number}")
        folder, config = rng.choice(seeds)
        (folder / "config.json").write_text(json.dumps(mutated(config, rng)))
        planned += message_of(number, partial(plan, folder)) is None
    assert planned > 0


STRANGE = (None, True, 0, -1, 1, 3, 2**31, 2**70, 0.5, 1e300, "", "linear", [], [1], {}, {"rope_type": "yarn"}, [[]])
ROPES = (
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "full_attention",
    "long_factor",
    "original_max_position_embeddings",
)


def mutated(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    changed = dict(config)
    for _ in range(rng.randint(1, 2)):
        key = rng.choice(
            [*config, "rope_scaling", "rope_parameters", "layer_types", "num_experts", "quantization_config"]
        )
        if rng.random() < 0.2:
            changed.pop(key, None)
        elif key.startswith("rope_") and rng.random() < 0.7:
            changed[key] = {rng.choice(ROPES): rng.choice([*STRANGE, "llama3", "yarn", "longrope"]) for _ in range(3)}
        else:
            changed[key] = rng.choice(STRANGE)
    return changed


def plan(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    family = checkpoint.family
    config = family.read_config(checkpoint.config, "config.json")
    sources = {name: StoredRows(tensor) for name, tensor in checkpoint.weights.items()}
    list(family.check(config))
    made = make_plan(family, config, sources, OUTTYPES["q8_0"].choose)
    list(family.keys(config, vocabulary_rows(sources)))
    assert made.n_bytes == sum(-(-tensor.n_bytes // 32) * 32 for tensor in made.tensors)
