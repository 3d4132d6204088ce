"""`refusal-edge inspect`: what a GGUF file is, and what it may refuse."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from refusal_edge.byte_level import sealed_text
from refusal_edge.cli import terminal
from refusal_edge.gguf_file import GGUFArray, GGUFFile, read_gguf
from refusal_edge.gguf_verify import Verification
from refusal_edge.keys import Stamp, is_stamped
from refusal_edge.policy import ControlValue

SUMMARY = "show a GGUF file: model, vocabulary, control tokens, policy, calibration"
EXAMPLES = """  refusal-edge inspect model.gguf
  refusal-edge inspect model.gguf --json
  refusal-edge inspect model.gguf --verify"""

TOKEN_TYPES: Final = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}
REACHED_BY: Final = {
    "never": "no text",
    "special": "special-token text",
    "text": "any text",
    None: "not tested",
}

RULES: Final = {
    "threshold": "where a score reaches its category's threshold; the highest such score names the category",
    "sum": "where the scores of all categories together reach {:g}",
    "paper-single": "where the refuse token's probability reaches the threshold",
    "paper-argmax": "where the refuse token is likelier than the respond token",
    "paper-category": "where the likeliest category's probability reaches its threshold",
}
FALLBACKS: Final = {"model": "the model goes on by itself", "respond": "respond", "refuse": "refuse"}

# general.file_type counts through these (llama.cpp, include/llama.h: llama_ftype); "-" is no longer in use.
_FILE_TYPES: Final = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS "
    "Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4"
)
FILE_TYPES: Final = dict(enumerate(_FILE_TYPES.split()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a GGUF file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--verify", action="store_true", help="read every tensor again and look for NaN; exit code 1 if found"
    )


def run(args: argparse.Namespace) -> int:
    with read_gguf(args.file) as file:
        facts = collect(file)
        verification = _verified(file) if args.verify else None
    if verification is not None:
        facts["verification"] = {**asdict(verification), "sound": not verification.problems}
    print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else screen(facts))
    return 1 if verification is not None and verification.problems else 0


def _verified(file: GGUFFile) -> Verification:
    from tqdm import tqdm

    from refusal_edge.gguf_verify import verify

    total = sum(tensor.n_bytes for tensor in file.tensors.values())
    with tqdm(desc="reading", total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        return verify(file, bar.update)


def collect(file: GGUFFile) -> dict[str, Any]:
    """Everything the screen shows, as JSON types.

    Raises:
        MetadataError: the file has refusal_edge.* keys that are broken.
    """
    stamp = Stamp.from_kv(file.kv, file.n_vocab()) if is_stamped(file.kv) else None
    return {
        "path": str(file.path),
        "n_bytes": os.path.getsize(file.path),
        "gguf_version": file.version,
        "model": _model(file),
        "vocabulary": _vocabulary(file),
        "chat_template": _chat_template(file),
        "control_tokens": _control_tokens(file, stamp) if stamp else None,
        "policy": stamp.policy.to_dict() if stamp else None,
        "token_type": stamp.token_type if stamp else None,
        "reachable": stamp.reachable if stamp else None,
        "calibration": stamp.calibration if stamp else None,
    }


def _model(file: GGUFFile) -> dict[str, Any]:
    arch = file.text("general.architecture")
    n_params = 0
    for tensor in file.tensors.values():
        n = 1
        for size in tensor.shape:
            n *= size
        n_params += n
    file_type = file.integer("general.file_type")
    return {
        "name": file.text("general.name"),
        "architecture": arch,
        "n_params": n_params,
        "n_blocks": file.integer(f"{arch}.block_count"),
        "context_length": file.integer(f"{arch}.context_length"),
        "file_type": None if file_type is None else FILE_TYPES.get(file_type, str(file_type)),
        "n_tensors": len(file.tensors),
        "tensor_types": dict(Counter(tensor.type_name for tensor in file.tensors.values()).most_common()),
    }


def _vocabulary(file: GGUFFile) -> dict[str, Any] | None:
    tokens = file.kv.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, GGUFArray):
        return None
    ids = {name: file.integer(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot")}
    texts = tokens.take(i for i in ids.values() if i is not None)
    special = {name: {"id": i, "text": texts[i].decode(errors="replace")} for name, i in ids.items() if i is not None}
    return {
        "n_tokens": len(tokens),
        "model": file.text("tokenizer.ggml.model"),
        "pre": file.text("tokenizer.ggml.pre"),
        "add_bos": _flag(file, "tokenizer.ggml.add_bos_token"),
        "add_eos": _flag(file, "tokenizer.ggml.add_eos_token"),
        **special,
    }


def _flag(file: GGUFFile, key: str) -> bool | None:
    value = file.kv.get(key)
    return value if isinstance(value, bool) else None


def _chat_template(file: GGUFFile) -> dict[str, Any] | None:
    template = file.text("tokenizer.chat_template")
    if template is None:
        return None
    data = template.encode()
    return {"sha256": hashlib.sha256(data).hexdigest(), "n_bytes": len(data)}


def _control_tokens(file: GGUFFile, stamp: Stamp) -> list[dict[str, Any]]:
    roles: list[tuple[str, str, int, ControlValue | None]]
    roles = [(c.id, c.title, c.token_id, c.threshold) for c in stamp.categories]
    roles.append(("respond", "Respond", stamp.respond_token_id, None))
    tokens, types = file.kv.get("tokenizer.ggml.tokens"), file.kv.get("tokenizer.ggml.token_type")
    ids = [token_id for _, _, token_id, _ in roles]
    raw = tokens.take(ids) if isinstance(tokens, GGUFArray) else {}
    kinds = types.take(ids) if isinstance(types, GGUFArray) else {}
    model = file.text("tokenizer.ggml.model")

    def text(piece: bytes) -> str:
        return sealed_text(piece, model) if stamp.token_type == "sealed" else piece.decode(errors="replace")

    return [
        {
            "role": role,
            "title": title,
            "id": token_id,
            "text": text(raw[token_id]) if token_id in raw else None,
            "type": TOKEN_TYPES.get(kinds[token_id], "undefined") if token_id in kinds else None,
            "threshold": threshold,
        }
        for role, title, token_id, threshold in roles
    ]


def screen(facts: dict[str, Any]) -> str:
    """The facts for a person."""
    parts = [_head(facts), terminal.table(_rows(facts))]
    if facts["control_tokens"] is None:
        parts.append(
            "No refusal_edge.* keys: nothing here says which tokens refuse. If this is a refusal-token fine-tune, add "
            f"them:\n  refusal-edge annotate {terminal.printable(facts['path'])} -o OUT.gguf"
        )
    else:
        parts += [_control_table(facts), terminal.table(_policy_rows(facts))]
    if "verification" in facts:
        parts.append(_verification_text(facts["verification"]))
    return "\n\n".join(parts)


def _head(facts: dict[str, Any]) -> str:
    model = facts["model"]
    size = f"{_size(facts['n_bytes'])}, GGUF version {facts['gguf_version']}"
    what = [f"{model['n_params'] / 1e6:,.1f}M parameters" if model["n_params"] else "no tensors: a vocabulary only"]
    what += [model["file_type"]] if model["file_type"] and model["n_params"] else []
    return f"{terminal.printable(Path(facts['path']).name)}: {', '.join(what)}, {size}"


def _rows(facts: dict[str, Any]) -> list[list[str]]:
    model, vocabulary, template = facts["model"], facts["vocabulary"], facts["chat_template"]
    rows = []
    if model["name"]:
        rows.append(["name", terminal.printable(model["name"])])
    shape = [str(model["architecture"])]
    shape += [f"{model['n_blocks']} blocks"] if model["n_blocks"] is not None else []
    shape += [f"context {model['context_length']:,}"] if model["context_length"] is not None else []
    rows.append(["architecture", terminal.printable(", ".join(shape))])
    if model["n_tensors"]:
        types = ", ".join(f"{n} {name}" for name, n in model["tensor_types"].items())
        rows.append(["tensors", f"{model['n_tensors']} ({types})"])
    if vocabulary is None:
        rows.append(["vocabulary", "none"])
    else:
        kind = {"gpt2": "byte-level BPE", "llama": "SentencePiece"}.get(vocabulary["model"], str(vocabulary["model"]))
        pre = f", pre-tokenizer {vocabulary['pre']}" if vocabulary["pre"] not in (None, "default") else ""
        rows.append(["vocabulary", terminal.printable(f"{vocabulary['n_tokens']:,} tokens, {kind}{pre}")])
        rows.append(["prompt begins", _begins(vocabulary)])
        ends = [_token(vocabulary[name]) for name in ("eos", "eot") if name in vocabulary]
        rows.append(["answer ends", " or ".join(ends) or "not said"])
    about = f"{template['n_bytes']:,} bytes, sha256 {template['sha256'][:16]}…" if template else "none"
    rows.append(["chat template", about])
    return rows


def _begins(vocabulary: dict[str, Any]) -> str:
    if vocabulary["add_bos"] is None:
        return "as llama.cpp sees fit (add_bos_token is not set)"
    return f"with {_token(vocabulary['bos'])}" if vocabulary["add_bos"] and "bos" in vocabulary else "with the text"


def _token(token: dict[str, Any]) -> str:
    return f"{token['id']} {terminal.printable(token['text'])}"


def _control_table(facts: dict[str, Any]) -> str:
    reached = REACHED_BY[facts["reachable"]]
    rows = [
        [t["role"], str(t["id"]), _quoted(t["text"]), _type(t, facts), reached, terminal.number(t["threshold"])]
        for t in facts["control_tokens"]
    ]
    header = ["role", "id", "exact text", "type", "reached by", "threshold"]
    return terminal.table([[terminal.printable(cell) for cell in row] for row in rows], header=header)


def _type(token: dict[str, Any], facts: dict[str, Any]) -> str:
    sealed = facts["token_type"] == "sealed" and token["type"] == "normal"
    return "sealed" if sealed else token["type"] or "?"


def _quoted(text: str | None) -> str:
    return "?" if text is None else f'"{text}"'


def _policy_rows(facts: dict[str, Any]) -> list[list[str]]:
    policy, calibration = facts["policy"], facts["calibration"]
    if calibration is None:
        calibrated = "none; `refusal-edge calibrate` chooses thresholds with a guarantee"
    else:
        calibrated = ", ".join(f"{name} {_short(value)}" for name, value in calibration.items())
    rows = [
        ["refuses", RULES[policy["rule"]].format(policy["sum_threshold"])],
        ["", f"rule {policy['rule']}, score {policy['score']}, temperature {policy['temperature']:g}"],
        ["no decision", f"below {policy['min_control_mass']:g} control mass: {FALLBACKS[policy['fallback']]}"],
        ["calibration", terminal.printable(calibrated)],
    ]
    if any(category["threshold"] == "model" for category in policy["categories"]):
        rows.insert(1, ["", '"model": where the model itself ranks that token first among the control tokens'])
    return rows


def _short(value: object) -> str:
    return f"{value[:16]}…" if isinstance(value, str) and len(value) > 32 else str(value)


def _verification_text(verification: dict[str, Any]) -> str:
    read = f"read {_size(verification['n_bytes'])} of tensor data, sha256 {verification['sha256']}"
    return "\n".join([read, *verification["problems"]] if verification["problems"] else [read, "no problem found"])


def _size(n_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"
