"""Tokens with a role (begin, end, end of turn, ...) and whether they are put around every prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refusal_edge.errors import ConversionError

from ..jsonfile import shown
from .byte_level import steps
from .files import TokenizerFiles, token_text

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# Texts that llama.cpp ends generation at by itself (src/llama-vocab.cpp); those that end a turn, best first.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>", "[EOT]", "<end_of_utterance>")
KNOWN_ENDS = frozenset(
    {*TURN_ENDS, "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<｜end▁of▁sentence｜>"}
)
TURN_STARTS = frozenset(  # and what stands around the name of a role
    {
        *("<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|start_of_role|>", "<|end_of_role|>"),
        *("<start_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "[INST]", "[/INST]"),
    }
)


@dataclass
class Specials:
    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def find(files: TokenizerFiles, config: Mapping[str, Any], ids: Mapping[str, int], n_rows: int) -> Specials:
    """Roles as llama.cpp's converter assigns them, and the end of a turn where it is not the end of the text.

    Args:
        config: config.json. ids: text -> id of every token that may have a role.

    Raises:
        ConversionError: no token ends the text; llama.cpp would end every answer at token 11.
    """
    found = Specials()
    texts = {role: token_text(files.config.get(f"{role}_token")) for role in ROLES}
    texts["bos"] = texts["bos"] or texts["cls"]
    texts["eos"] = texts["eos"] or texts["sep"]
    template = _template(files)
    _read_template(template, texts, found)
    _read_flags(files, found, has_processor=bool(template))
    for role in (*ROLES, *(role for role in texts if role not in ROLES)):
        text = texts[role]
        if text is not None and text in ids:
            found.ids[role] = ids[text]
    for role in ROLES:
        _from_config(role, config, n_rows, found)
    _ends(files, config, ids, n_rows, found)
    if found.add["bos"] and "bos" not in found.ids:
        found.add["bos"] = False
        found.warnings.append("prompts should begin with a bos token, but none is named: none is added")
    return found


def _template(files: TokenizerFiles) -> list[dict[str, Any]]:
    return steps(files.tokenizer.get("post_processor"))


def _read_template(processors: list[dict[str, Any]], texts: dict[str, str | None], found: Specials) -> None:
    """What the post-processor of tokenizer.json puts around a text: `<bos> A`, `A <eos>`, `A <sep> B`."""
    for processor in processors:
        if processor.get("type") == "ByteLevel":
            found.add.setdefault("bos", False)
            found.add.setdefault("eos", False)
        if processor.get("type") != "TemplateProcessing":
            continue
        single, pair = _pattern(processor.get("single")), _pattern(processor.get("pair"))
        first = single[0] if len(single) > 1 and single[0] != "A" else None
        last = single[-1] if len(single) > 1 and single[-1] != "A" else None
        if first is not None:
            if first not in (texts["bos"], texts["cls"]):
                texts["bos"] = texts["bos"] or first
                texts["cls"] = texts["cls"] or first
            found.add["bos"] = first in (texts["bos"], texts["cls"])
        if last is not None:
            if last != texts["eos"]:  # the template ends with another token than the one called eos
                texts["eot"], texts["eos"] = texts["eos"], last
            found.add["eos"] = True
        if first is not None and pair[:1] == [first]:
            pair = pair[1:]
        if last is not None and pair[-1:] == [last]:
            pair = pair[:-1]
        if len(pair) > 2 and pair[0] == "A" and pair[-1] == "B":
            between = (texts["sep"], texts["eos"])
            found.add["sep"] = (pair[1] in between and last is None) or (len(pair) == 4 and pair[2] in between)


def _pattern(items: object) -> list[str]:
    """A template as a list: "A" and "B" for the sequences, else the text of a token."""
    pattern = []
    for item in items if isinstance(items, list) else []:
        entry = item.get("SpecialToken") or item.get("Sequence") if isinstance(item, dict) else None
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            pattern.append(entry["id"])
    return pattern


def _read_flags(files: TokenizerFiles, found: Specials, *, has_processor: bool) -> None:
    """add_bos and add_eos are always written: llama.cpp's own default depends on the pre-tokenizer's name."""
    for role in ROLES:
        flag = files.config.get(f"add_{role}_token")
        if not isinstance(flag, bool):
            continue
        if role not in found.add:
            found.add[role] = flag
        elif found.add[role] != flag:
            found.warnings.append(
                f"tokenizer_config.json says add_{role}_token = {flag}, the post-processor of tokenizer.json does "
                f"{'add' if found.add[role] else 'not add'} it: the latter is used"
            )
    sentencepiece_class = str(files.config.get("tokenizer_class", "")).startswith(("Llama", "CodeLlama", "Gemma"))
    default_bos = files.proto is not None if not files.tokenizer else sentencepiece_class and not has_processor
    found.add.setdefault("bos", default_bos)
    found.add.setdefault("eos", False)


def _from_config(role: str, config: Mapping[str, Any], n_rows: int, found: Specials) -> None:
    value = config.get(f"{role}_token_id")
    if role in found.ids or value is None:
        return
    if isinstance(value, list) and value:
        value = value[0]
    if type(value) is not int or not 0 <= value < n_rows:
        found.warnings.append(f"config.json: {role}_token_id {shown(value)} is not a token of this vocabulary: ignored")
        return
    found.ids[role] = value


def _ends(
    files: TokenizerFiles, config: Mapping[str, Any], ids: Mapping[str, int], n_rows: int, found: Specials
) -> None:
    """The end of a turn: what generation stops at according to the checkpoint, else a token known to mean it."""
    listed = [
        token_id
        for table in (files.generation, config)
        for token_id in _as_list(table.get("eos_token_id"))
        if type(token_id) is int and 0 <= token_id < n_rows
    ]
    known = [ids[text] for text in TURN_ENDS if text in ids]
    if "eos" not in found.ids:
        if not (candidates := listed + known):
            raise ConversionError(
                f"{files.folder}: no token ends the text: set eos_token in tokenizer_config.json or eos_token_id in "
                "config.json"
            )
        found.ids["eos"] = candidates[0]
    ends = [i for i in dict.fromkeys([*(i for i in listed if i in known), *listed, *known]) if i != found.ids["eos"]]
    if "eot" not in found.ids and ends:
        found.ids["eot"] = ends[0]
    if "eom" not in found.ids and "<|eom_id|>" in ids:
        found.ids["eom"] = ids["<|eom_id|>"]
    known_ends = {*found.ids.values(), *(ids[text] for text in KNOWN_ENDS if text in ids)}
    for token_id in dict.fromkeys(listed):
        if token_id not in known_ends:
            found.warnings.append(f"token {token_id} also ends generation, but a GGUF has no key left for it")


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
