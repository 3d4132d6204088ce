"""`general.*`: what the model is called, what it was made from, how it wants to be sampled."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFType, GGUFValueType, GGUFWriter, Keys, LlamaFileType, Metadata
from gguf import size_label as format_size

from refusal_edge.errors import FormatError

from .config import FLOAT32_MAX
from .gguf_writer import KeyValue
from .jsonfile import read_object, shown

MAX_CARD_BYTES = 1 << 20

SAMPLING = {
    "sequence": (Keys.General.SAMPLING_SEQUENCE, GGUFValueType.STRING),
    "top_k": (Keys.General.SAMPLING_TOP_K, GGUFValueType.INT32),
    "top_p": (Keys.General.SAMPLING_TOP_P, GGUFValueType.FLOAT32),
    "min_p": (Keys.General.SAMPLING_MIN_P, GGUFValueType.FLOAT32),
    "xtc_probability": (Keys.General.SAMPLING_XTC_PROBABILITY, GGUFValueType.FLOAT32),
    "xtc_threshold": (Keys.General.SAMPLING_XTC_THRESHOLD, GGUFValueType.FLOAT32),
    "temperature": (Keys.General.SAMPLING_TEMP, GGUFValueType.FLOAT32),
    "penalty_last_n": (Keys.General.SAMPLING_PENALTY_LAST_N, GGUFValueType.INT32),
    "repetition_penalty": (Keys.General.SAMPLING_PENALTY_REPEAT, GGUFValueType.FLOAT32),
    "mirostat": (Keys.General.SAMPLING_MIROSTAT, GGUFValueType.INT32),
    "mirostat_tau": (Keys.General.SAMPLING_MIROSTAT_TAU, GGUFValueType.FLOAT32),
    "mirostat_eta": (Keys.General.SAMPLING_MIROSTAT_ETA, GGUFValueType.FLOAT32),
}
"""Of generation_config.json, with the key and type that llama.cpp's converter gives each."""

_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_PHI3_NEEDS = frozenset((b"</s>", b"<unk>", b"<s>", b"<|endoftext|>"))


def general_keys(
    folder: Path, config: dict[str, Any], arch: str, *, name: str | None, n_params: int, file_type: LlamaFileType
) -> tuple[list[KeyValue], list[str]]:
    """The `general.*` pairs and warnings about what of the checkpoint's own description could not be used.

    The names come from the README's front matter, config.json and the folder's name, by the rules of `gguf.Metadata`.
    """
    warnings: list[str] = []
    try:
        described = _describe(folder, config, arch, name, n_params, _model_card(folder))
    except Exception as error:  # a model card is free text: whatever is wrong with it must not stop a conversion
        warnings.append(f"{folder / 'README.md'}: front matter ignored ({type(error).__name__}: {shown(str(error))})")
        described = _describe(folder, config, arch, name, n_params, {})
    pairs = [
        KeyValue(Keys.General.ARCHITECTURE, arch, GGUFValueType.STRING),
        KeyValue(Keys.General.TYPE, GGUFType.MODEL, GGUFValueType.STRING),
        *_sampling(folder),
        *described,
        KeyValue(Keys.General.FILE_TYPE, int(file_type), GGUFValueType.UINT32),
        KeyValue(Keys.General.QUANTIZATION_VERSION, GGML_QUANT_VERSION, GGUFValueType.UINT32),
    ]
    return pairs, warnings


def avoid_phi3(pairs: list[KeyValue], tokens: Collection[bytes]) -> list[KeyValue]:
    """The pairs with a `general.name` that does not make llama.cpp fail.

    A name with "phi3" makes it look up four tokens by text and abort the load where one of them is missing.
    """
    if _PHI3_NEEDS.issubset(tokens):
        return pairs
    return [
        pair._replace(value=_PHI3.sub("phi 3", pair.value)) if pair.key == Keys.General.NAME else pair for pair in pairs
    ]


def _model_card(folder: Path) -> dict[str, Any]:
    card = folder / "README.md"
    if card.is_file() and card.stat().st_size > MAX_CARD_BYTES:
        raise ValueError(f"larger than {MAX_CARD_BYTES} bytes")
    return {key: value for key, value in Metadata.load_model_card(folder).items() if _is_flat(value)}


def _is_flat(value: Any) -> bool:
    """At most one level deep: YAML aliases can nest a few bytes into more text than there is memory."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(isinstance(item, (str, int, float)) for item in items)


def _describe(
    folder: Path, config: dict[str, Any], arch: str, name: str | None, n_params: int, card: dict[str, Any]
) -> list[KeyValue]:
    known_as = config.get("_name_or_path")
    hints = {"_name_or_path": known_as} if isinstance(known_as, str) else {}
    place = Path(folder.resolve().name.encode(errors="replace").decode())
    metadata = Metadata.apply_metadata_heuristic(Metadata(), card, hints, place, n_params)
    metadata.name = name or metadata.name or place.name
    metadata.size_label = metadata.size_label or format_size(n_params, n_params, 0, 0)
    writer = GGUFWriter(path=None, arch=arch)  # used as a list: it knows the key of each field
    metadata.set_gguf_meta_model(writer)
    pairs = [
        KeyValue(key, entry.value, entry.type, GGUFValueType.STRING if entry.type is GGUFValueType.ARRAY else None)
        for key, entry in writer.kv_data[0].items()
        if key != Keys.General.ARCHITECTURE
    ]
    for pair in pairs:
        texts = pair.value if pair.type is GGUFValueType.ARRAY else [pair.value]
        if pair.type is not GGUFValueType.UINT32 and not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{pair.key} must be text")
        "".join(text for text in texts if isinstance(text, str)).encode()  # YAML knows text that UTF-8 does not
    return pairs


def _sampling(folder: Path) -> Iterator[KeyValue]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        given = read_object(path)
    except FormatError:  # it says nothing about the weights
        return
    for name, (key, kind) in SAMPLING.items():
        if _is_a(kind, value := given.get(name)):
            yield KeyValue(key, value, kind)


def _is_a(kind: GGUFValueType, value: Any) -> bool:
    if kind is GGUFValueType.STRING:
        return isinstance(value, str)
    if kind is GGUFValueType.INT32:
        return type(value) is int and -(2**31) <= value < 2**31
    return type(value) in (int, float) and abs(value) <= FLOAT32_MAX
