"""PEFT adapters: LoRA, rsLoRA, DoRA, trained embeddings and single trained rows, merged into the base as it is read.

What an adapter means is in its `adapter_config.json` and in the names of its tensors, which follow the modules of the
base model: `base_model.model.<module>.lora_A.weight` and so on (PEFT 0.7 to 0.21).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_edge.errors import ConversionError, FormatError

from .jsonfile import read_object, shown
from .merge import LowRank, LowRankEmbedding, MergedRows, ReplacedRows
from .plan import EMBEDDING, HEAD
from .rows import READABLE, Rows, StoredRows
from .safetensors import read_header

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
EMBEDDING_MODULE, HEAD_MODULE = EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")

KNOWN = frozenset(
    {
        *(
            "r",
            "lora_alpha",
            "rank_pattern",
            "alpha_pattern",
            "use_rslora",
            "use_dora",
            "init_lora_weights",
            "peft_type",
        ),
        *("fan_in_fan_out", "trainable_token_indices", "modules_to_save", "ensure_weight_tying", "bias"),
        # what training did, which the tensors show
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "task_type"),
        *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "runtime_config"),
        *("eva_config", "corda_config", "loftq_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
    }
)
"""Settings that are understood or do not matter; any other that is set changes what the weights mean."""

KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model as it was."""

MAX_NAME = 256
_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+?)\."
    r"(?P<part>lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?|token_adapter\.trainable_tokens_delta"
    r"|(?:base_layer\.|modules_to_save\.|token_adapter\.base_layer\.|original_module\.)?(?:weight|bias))"
)
_PATTERN = re.compile(r"[\w.^$|()\\*-]{1,256}")


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, its settings, and its tensors: module -> part -> rows."""

    folder: Path
    config: dict[str, Any]
    modules: dict[str, dict[str, Rows]]

    @property
    def has_tokenizer(self) -> bool:
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))

    @property
    def has_embedding(self) -> bool:
        return "weight" in self.modules.get(EMBEDDING_MODULE, {})

    @property
    def unties(self) -> bool:
        """Whether a base with one matrix at both ends has two after this adapter."""
        saved = self.config.get("modules_to_save") or []
        trained = any(name.rpartition(".")[2] in ("embed_tokens", "lm_head") for name in saved)
        return trained and not self.config.get("ensure_weight_tying")

    def merge(self, sources: Mapping[str, Rows], *, tied: bool) -> dict[str, Rows]:
        """The base model's weights with the adapter in them.

        Args:
            sources: the base's weights by name, in reading order.
            tied: whether the base has no output head of its own.

        Raises:
            ConversionError: a tensor that fits nothing in the base, or one whose merge would be ambiguous.
        """
        merged = dict(sources)
        if tied:
            self._check_tied()
        if tied and self.unties:
            merged[HEAD] = sources[EMBEDDING]  # PEFT trains a copy, the other end stays as it was
        for module, parts in self.modules.items():
            if tied and module == HEAD_MODULE and not self.unties:
                continue  # the same matrix again
            self._merge_module(merged, module, parts)
        return merged

    def _check_tied(self) -> None:
        for module in (EMBEDDING_MODULE, HEAD_MODULE):
            if any(part.startswith("lora_") for part in self.modules.get(module, ())):
                raise ConversionError(
                    f"{self.folder}: LoRA on {module} of a model with tied embeddings changes one end or both, "
                    "depending on the program; merge it with PEFT's merge_and_unload and convert the result"
                )

    def _merge_module(self, merged: dict[str, Rows], module: str, parts: dict[str, Rows]) -> None:
        for end in ("weight", "bias"):
            if end in parts:
                self._replace(merged, f"{module}.{end}", parts[end])
        name = f"{module}.weight"
        if name not in merged:
            raise self._unfit(module, "the base model has no such weight")
        rows = merged[name]
        if any(part.startswith("lora_") for part in parts):
            rows = self._low_rank(module, parts, rows)
        if "trainable_tokens_delta" in parts:
            rows = self._trained_rows(module, parts["trainable_tokens_delta"], rows)
        merged[name] = rows

    def _replace(self, merged: dict[str, Rows], name: str, rows: Rows) -> None:
        if name not in merged:
            raise self._unfit(name, "the base model has no such weight")
        resizable = name in (EMBEDDING, HEAD)
        ours, theirs = (shape[1:] if resizable else shape for shape in (rows.shape, merged[name].shape))
        if len(rows.shape) != len(merged[name].shape) or ours != theirs:
            raise self._unfit(name, f"its shape {list(rows.shape)} is not the base's {list(merged[name].shape)}")
        merged[name] = rows

    def _low_rank(self, module: str, parts: dict[str, Rows], rows: Rows) -> Rows:
        embedding = "lora_embedding_A" in parts
        kind = "lora_embedding_" if embedding else "lora_"
        a, b, magnitude = parts.get(f"{kind}A"), parts.get(f"{kind}B"), parts.get("lora_magnitude_vector")
        if a is None or b is None:
            raise self._unfit(module, f"{kind}A and {kind}B must come together")
        rank = a.n_rows
        n_in, n_out = (rows.n_rows, rows.n_cols) if embedding else (rows.n_cols, rows.n_rows)
        if len(rows.shape) != 2 or rank == 0 or a.shape != (rank, n_in) or b.shape != (n_out, rank):
            raise self._unfit(
                module, f"A {list(a.shape)} and B {list(b.shape)} do not fit a weight of {list(rows.shape)}"
            )
        scale = self._scale(module, rank)
        if embedding:
            if magnitude is not None:
                raise self._unfit(module, "DoRA on an embedding is not supported; merge it with PEFT first")
            return MergedRows(rows, LowRankEmbedding(a, b, scale))
        if magnitude is not None and magnitude.shape != (n_out,):
            raise self._unfit(module, f"its magnitude has shape {list(magnitude.shape)}, expected [{n_out}]")
        return MergedRows(rows, LowRank(a, b, scale), magnitude)

    def _scale(self, module: str, rank: int) -> float:
        alpha = self.config.get("lora_alpha", 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({_checked_pattern(pattern, self.folder)})$", module):
                alpha = value
                break
        if type(alpha) not in (int, float) or not abs(alpha) <= 1e9:
            raise FormatError(f"{self.folder / CONFIG_FILE}: lora_alpha must be a number, got {shown(alpha)}")
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _trained_rows(self, module: str, values: Rows, rows: Rows) -> Rows:
        ids = self._token_ids(module)
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < rows.n_rows for i in ids):
            raise self._unfit(module, f"trainable_token_indices must be ids below {rows.n_rows}, got {shown(ids)}")
        if len(set(ids)) != len(ids) or values.shape != (len(ids), rows.n_cols):
            raise self._unfit(module, f"{len(set(ids))} trained tokens, but rows of shape {list(values.shape)}")
        return ReplacedRows(rows, ids, values)

    def _token_ids(self, module: str) -> Any:
        given = self.config.get("trainable_token_indices")
        if not isinstance(given, dict):
            return given
        for name, ids in given.items():
            if module == name or module.endswith(f".{name}"):
                return ids
        return next(iter(given.values()), None)  # the other end of a tied pair

    def _unfit(self, name: str, why: str) -> ConversionError:
        return ConversionError(f"{self.folder}: {shown(name)}: {why}")


def open_adapter(folder: Path) -> Adapter:
    """Reads an adapter's settings and the headers of its weights.

    Raises:
        ConversionError: not a LoRA adapter, or one that does not stand for an update of an unchanged base.
        FormatError: a file is missing or broken.
    """
    config = read_object(folder / CONFIG_FILE)
    _check_config(config, folder)
    if not (folder / WEIGHTS_FILE).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        what = (
            "only pickle weights, which can run code when read; save it with safetensors" if pickled else "no weights"
        )
        raise FormatError(f"{folder}: {what} ({WEIGHTS_FILE} is missing)")
    if (folder / "new_embeddings.safetensors").is_file():
        raise ConversionError(f"{folder}: new_embeddings.safetensors is not PEFT's format; merge the adapter first")
    modules: dict[str, dict[str, Rows]] = {}
    for name, tensor in read_header(folder / WEIGHTS_FILE).items():
        match = _TENSOR.fullmatch(name)
        if match is None or len(name) > MAX_NAME:
            raise ConversionError(f"{folder}: tensor {shown(name)} is of a kind that cannot be merged")
        if tensor.dtype not in READABLE or not 1 <= len(tensor.shape) <= 2 or 0 in tensor.shape:
            raise FormatError(f"{folder}: tensor {shown(name)} is {tensor.dtype} {list(tensor.shape)}")
        parts = modules.setdefault(match["module"], {})
        part = _part(match["part"])
        if part in parts:
            raise FormatError(f"{folder}: two tensors are {part} of {shown(match['module'])}")
        parts[part] = StoredRows(tensor)
    return Adapter(folder, config, modules)


def _part(suffix: str) -> str:
    """What a tensor is: lora_A, lora_embedding_B, lora_magnitude_vector, trainable_tokens_delta, weight or bias."""
    *_, last = parts = suffix.split(".")
    return parts[0] if parts[0].startswith("lora_") else last


def _check_config(config: dict[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise ConversionError(
            f"{folder}: peft_type is {shown(config.get('peft_type'))}; only LORA adapters can be merged"
        )
    init = config.get("init_lora_weights", True)
    if init not in KEEPS_THE_BASE:
        raise ConversionError(
            f"{folder}: init_lora_weights {shown(init)} changed the base model's weights too, which are not in the "
            "adapter; merge it in PEFT, with the changed base, and convert the result"
        )
    if config.get("fan_in_fan_out"):
        raise ConversionError(f"{folder}: fan_in_fan_out is for transposed weights, which no supported family has")
    unknown = [key for key, value in config.items() if key not in KNOWN and value]
    if unknown:
        raise ConversionError(f"{folder}: {CONFIG_FILE} sets {shown(unknown[0])}, whose merge is not supported")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise FormatError(f"{folder / CONFIG_FILE}: {key} must be an object, got {shown(config[key])}")
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise FormatError(f"{folder / CONFIG_FILE}: modules_to_save must be a list of names, got {shown(saved)}")


def _checked_pattern(pattern: str, folder: Path) -> str:
    """A module pattern that is safe to run: regular expressions of strangers can take forever."""
    if not _PATTERN.fullmatch(pattern) or ")*" in pattern or pattern.count("*") > 2:
        raise ConversionError(f"{folder}: alpha_pattern {shown(pattern)} is not a plain module name")
    try:
        re.compile(pattern)
    except re.error as error:
        raise FormatError(f"{folder}: alpha_pattern {shown(pattern)}: {error}") from None
    return pattern
