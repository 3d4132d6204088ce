"""Adapters, merged as PEFT itself merges them; and those that cannot be merged, refused with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import CONTROL_TEXTS, write_checkpoint, write_json, write_safetensors

from refusal_edge.convert import convert
from refusal_edge.convert.adapter import open_adapter
from refusal_edge.convert.checkpoint import open_checkpoint
from refusal_edge.convert.rows import OpenFiles, Rows, StoredRows
from refusal_edge.errors import ConversionError

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
N_TOKENS = 273
NEW_ROWS = [267, 268, 269, 270, 271, 272]

MERGES: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ALL_LINEAR},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "k_proj", "down_proj"], "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
        "alpha_pattern": {"v_proj": 32, r"model.layers.(0|1).mlp.down_proj": 3},
    },
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "trained tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": NEW_ROWS, "lm_head": NEW_ROWS[::-1]},
    },
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
}
TIED_MERGES: dict[str, dict[str, Any]] = {
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": NEW_ROWS},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "both ends saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "kept tied": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("name", MERGES)
def test_merge_equals_peft(name: str, tmp_path: Path) -> None:
    check_merge(tmp_path, MERGES[name], tied=False)


@pytest.mark.parametrize("name", TIED_MERGES)
def test_merge_into_tied_base_equals_peft(name: str, tmp_path: Path) -> None:
    check_merge(tmp_path, TIED_MERGES[name], tied=True)


@pytest.mark.parametrize("tied", [False, True])
def test_resized_vocabulary_comes_from_the_adapter(tied: bool, tmp_path: Path) -> None:
    """The base knows no control tokens; the adapter brings their rows and the tokenizer."""
    check_merge(tmp_path, {"target_modules": ["q_proj"]}, tied=tied, base_tokens=(), resize=len(CONTROL_TEXTS))
    adapter = copy_tokenizer(write_checkpoint(tmp_path / "grown", tied=tied), tmp_path / "adapter")
    report = convert(tmp_path / "base", tmp_path / "out.gguf", adapter=adapter, outtype="q8_0")
    assert [token.text for token in report.control] == list(CONTROL_TEXTS)
    assert report.n_vocab == N_TOKENS


def check_merge(
    tmp_path: Path, settings: dict[str, Any], *, tied: bool, base_tokens: Any = CONTROL_TEXTS, resize: int = 0
) -> None:
    """Merges an adapter with PEFT and with ours: every weight must be the same."""
    base = write_checkpoint(tmp_path / "base", dtype="F32", tied=tied, tokens=base_tokens)
    adapter = train_adapter(base, tmp_path / "adapter", settings, resize=resize)
    theirs = merge_with_peft(base, adapter, resize=resize)
    ours = merge_with_us(base, adapter, tied=tied)
    original = merge_with_us(base, None, tied=tied)
    assert any(name not in original or not np.array_equal(ours[name], original[name]) for name in ours)
    assert ours.keys() == theirs.keys()
    far = {name: np.abs(ours[name] - theirs[name]).max() for name in ours if not close(ours[name], theirs[name])}
    assert far == {}


def close(ours: Any, theirs: Any) -> bool:
    return ours.shape == theirs.shape and float(np.abs(ours - theirs).max()) <= 1e-6


def merge_with_us(base: Path, adapter: Path | None, *, tied: bool) -> dict[str, Any]:
    sources: dict[str, Rows] = {name: StoredRows(t) for name, t in open_checkpoint(base).weights.items()}
    if adapter is not None:
        sources = open_adapter(adapter).merge(sources, tied=tied)
    with OpenFiles() as files:  # in two pieces, as large tensors are
        return {
            name: np.concatenate([rows.read(files, 0, 7), rows.read(files, 7, rows.n_rows)]).reshape(rows.shape)
            for name, rows in sources.items()
        }


def train_adapter(base: Path, folder: Path, settings: dict[str, Any], resize: int) -> Path:
    """An adapter with random weights in all its parts, as PEFT saves it."""
    torch, peft, transformers = (
        pytest.importorskip(name, reason="holds our merge against PEFT's") for name in ("torch", "peft", "transformers")
    )
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if resize:
        model.resize_token_embeddings(model.config.vocab_size + resize)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=7, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def merge_with_peft(base: Path, adapter: Path, resize: int) -> dict[str, Any]:
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if resize:
        model.resize_token_embeddings(model.config.vocab_size + resize)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    weights = {name: tensor.numpy() for name, tensor in merged.state_dict().items()}
    if merged.lm_head.weight is merged.model.embed_tokens.weight:
        del weights["lm_head.weight"]
    return weights


def copy_tokenizer(source: Path, target: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)
    return target


# Refusals: adapters written by hand

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj."
EMBED = "base_model.model.model.embed_tokens."
LORA = {Q_PROJ + "lora_A.weight": (4, 64), Q_PROJ + "lora_B.weight": (64, 4)}

REFUSED_SETTINGS = {
    "another method": ({"peft_type": "LOHA"}, "only LORA"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_16"}, "changed the base model's weights"),
    "OLoRA": ({"init_lora_weights": "olora"}, "changed the base model's weights"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "changed the base model's weights"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "a setting of the future": ({"use_something_new": True}, "use_something_new"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "nested repetition": ({"alpha_pattern": {"(a*)*b": 1}}, "not a plain module name"),
    "slow pattern": ({"alpha_pattern": {".*.*.*x": 1}}, "not a plain module name"),
    "broken pattern": ({"alpha_pattern": {"(a": 1}}, "alpha_pattern"),
    "alpha": ({"lora_alpha": "much"}, "lora_alpha must be a number"),
}
REFUSED_TENSORS = {
    "half a LoRA": ({Q_PROJ + "lora_A.weight": (4, 64)}, "must come together"),
    "rank": ({Q_PROJ + "lora_A.weight": (4, 64), Q_PROJ + "lora_B.weight": (64, 3)}, "do not fit"),
    "magnitude": ({**LORA, Q_PROJ + "lora_magnitude_vector": (63,)}, "expected [64]"),
    "no such module": ({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": (4, 64)}, "no such weight"),
    "unknown vector": ({**LORA, Q_PROJ + "vera_lambda_b": (64,)}, "cannot be merged"),
    "unknown matrix": ({Q_PROJ + "oft_R.weight": (4, 4)}, "no such weight"),
    "endless name": ({f"base_model.model.{'a' * 300}.lora_A.weight": (4, 64)}, "cannot be merged"),
    "foreign name": ({"model.layers.0.self_attn.q_proj.lora_A.weight": (4, 64)}, "cannot be merged"),
    "shape of a saved module": ({"base_model.model.model.norm.weight": (63,)}, "is not the base's"),
    "rows without ids": ({EMBED + "token_adapter.trainable_tokens_delta": (2, 64)}, "trainable_token_indices"),
    "DoRA on the embedding": (
        {
            EMBED + "lora_embedding_A": (4, 273),
            EMBED + "lora_embedding_B": (64, 4),
            EMBED + "lora_magnitude_vector": (64,),
        },
        "DoRA on an embedding",
    ),
}


@pytest.mark.parametrize("name", REFUSED_SETTINGS)
def test_refuses_settings(name: str, tmp_path: Path) -> None:
    settings, message = REFUSED_SETTINGS[name]
    check_refused(tmp_path, settings, LORA, message)


@pytest.mark.parametrize("name", REFUSED_TENSORS)
def test_refuses_tensors(name: str, tmp_path: Path) -> None:
    tensors, message = REFUSED_TENSORS[name]
    check_refused(tmp_path, {}, tensors, message)


@pytest.mark.parametrize("ids", [[1, 1], [1, 273], [-1, 1], [1], "12", None, [True, 1]])
def test_refuses_token_ids(ids: Any, tmp_path: Path) -> None:
    delta = {EMBED + "token_adapter.trainable_tokens_delta": (2, 64)}
    check_refused(tmp_path, {"trainable_token_indices": ids}, delta, "token")


def test_refuses_lora_on_tied_embeddings(tmp_path: Path) -> None:
    tensors = {EMBED + "lora_embedding_A": (4, 273), EMBED + "lora_embedding_B": (64, 4)}
    check_refused(tmp_path, {}, tensors, "tied embeddings", tied=True)


def test_refuses_new_tokens_whose_rows_are_lost(tmp_path: Path) -> None:
    """The tokenizer has the control tokens, the adapter was saved without the embedding that grew for them."""
    base = write_checkpoint(tmp_path / "base", tokens=())
    adapter = write_adapter(tmp_path / "adapter", {}, LORA)
    copy_tokenizer(write_checkpoint(tmp_path / "grown"), adapter)
    with pytest.raises(ConversionError, match=r"adapter.*rows") as error:
        convert(base, tmp_path / "out.gguf", adapter=adapter)
    assert "[respond]" in str(error.value)


@pytest.mark.parametrize(("file", "message"), [("adapter_model.bin", "pickle"), ("nothing", "no weights")])
def test_refuses_adapters_without_safetensors(file: str, message: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {}, LORA)
    (adapter / "adapter_model.safetensors").rename(adapter / file)
    with pytest.raises(ConversionError, match=message):
        open_adapter(adapter)


def check_refused(tmp_path: Path, settings: Any, tensors: Any, message: str, *, tied: bool = False) -> None:
    base = write_checkpoint(tmp_path / "base", tied=tied)
    adapter = write_adapter(tmp_path / "adapter", settings, tensors)
    with pytest.raises(ConversionError) as error:
        merge_with_us(base, adapter, tied=tied)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def write_adapter(folder: Path, settings: Any, shapes: dict[str, tuple[int, ...]]) -> Path:
    folder.mkdir()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings})
    tensors = [(name, np.ones(shape, np.float32)) for name, shape in shapes.items()]
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder
