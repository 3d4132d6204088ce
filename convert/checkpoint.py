"""A Hugging Face checkpoint folder: what it is, and whether it is something this converter may touch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_edge.errors import ConversionError, FormatError

from .families import find_family
from .family import Family
from .jsonfile import read_object, shown
from .safetensors import StoredTensor, other_weights, read_weights

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
OTHER_SENSES = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: its folder, family, `config.json` as it stands, weights by name in reading order."""

    folder: Path
    family: Family
    config: dict[str, Any]
    weights: dict[str, StoredTensor]
    warnings: tuple[str, ...]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads `config.json` and the headers of the weights, nothing else.

    Raises:
        ConversionError: not a checkpoint, or one of a kind that is out of scope; the message names the kind.
        FormatError: a file of it is broken.
    """
    _check_folder(folder)
    config = read_object(folder / "config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise FormatError(
            f"{folder / 'config.json'}: architectures must be a list of one name, got {shown(architectures)}"
        )
    _check_kind(config, folder)
    family = find_family(architectures[0])
    warnings = list(other_weights(folder))
    if "auto_map" in config:
        if not family.had_remote_code:
            raise ConversionError(
                f"{folder}: config.json has an auto_map, so the model is defined by code of its own, which is not run; "
                "if it is a plain model after all, remove auto_map"
            )
        warnings.append(f"auto_map in config.json is ignored; the model is read as {architectures[0]}")
    return Checkpoint(folder, family, config, read_weights(folder), tuple(warnings))


def _check_folder(folder: Path) -> None:
    if folder.suffix == ".gguf" and folder.is_file():
        raise ConversionError(
            f"{folder} is a GGUF file already; add the control tokens to it with refusal-edge annotate"
        )
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise ConversionError(f"{folder} is {what}; SRC must be the folder of a Hugging Face checkpoint")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ConversionError(f"{folder} is a PEFT adapter; convert its base model with --adapter {folder}")
        raise ConversionError(f"{folder} has no config.json; SRC must be the folder of a Hugging Face checkpoint")


def _check_kind(config: dict[str, Any], folder: Path) -> None:
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ConversionError(
            f"{folder} is quantized (quantization_config: {shown(method)}); convert the full-precision checkpoint"
        )
    for key in EXPERTS:
        if config.get(key):
            raise ConversionError(
                f"{folder} is a mixture of experts ({key} {shown(config[key])}), which is out of scope"
            )
    for key in OTHER_SENSES:
        if config.get(key):
            raise ConversionError(
                f"{folder} is a multimodal model ({key}), which is out of scope; convert a text model"
            )
