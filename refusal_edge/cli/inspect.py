"""`refusal-edge inspect`: what a GGUF file is, and what it may refuse."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from refusal_edge.byte_level import sealed_text
from refusal_edge.cli import terminal
from refusal_edge.errors import FormatError, MetadataError
from refusal_edge.gguf_file import GGUFArray, GGUFFile, read_gguf
from refusal_edge.gguf_verify import Verification
from refusal_edge.keys import PREFIX, Stamp, is_stamped
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
REACHABLE_BY_TYPE: Final = {"control": "special", "user-defined": "text"}
"""What llama.cpp makes of a type, whatever the file claims; the text of a normal token may be out of reach, or not."""
TYPES_OF_CLAIM: Final[dict[str | None, str]] = {"sealed": "normal", "control": "control", "user": "user-defined"}

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
    if args.file.exists() and not args.file.is_file():
        raise FormatError(f"{args.file}: not a regular file; give the name of a GGUF file")  # a pipe has no end
    with read_gguf(args.file) as file:
        facts = collect(file)
        verification = _verified(file) if args.verify else None
    if verification is not None:
        facts["verification"] = {**asdict(verification), "sound": not verification.problems}
    print(json.dumps(facts, indent=2) if args.json else screen(facts))
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
    stamp = _stamp(file)
    control = _control_tokens(file, stamp) if stamp else None
    return {
        "path": str(file.path),
        "n_bytes": os.path.getsize(file.path),
        "gguf_version": file.version,
        "model": _model(file),
        "vocabulary": _vocabulary(file),
        "chat_template": _chat_template(file),
        "control_tokens": control,
        "policy": stamp.policy.to_dict() if stamp else None,
        "token_type": stamp.token_type if stamp else None,
        "reachable": _worst(token["reachable"] for token in control) if control else None,
        "calibration": stamp.calibration if stamp else None,
        "false_claim": _false_claim(file, control) if control else None,
    }


def _stamp(file: GGUFFile) -> Stamp | None:
    if not is_stamped(file.kv):
        ours = next((key for key in file.kv if key.startswith(PREFIX)), None)
        if ours is None:
            return None
        raise MetadataError(
            f"{file.path}: has {ours} but no {PREFIX}version: stamp it again with `refusal-edge annotate`"
        )
    try:
        return Stamp.from_kv(file.kv, file.n_vocab())
    except MetadataError as error:
        raise MetadataError(f"{file.path}: {error}") from None


def _worst(reachable: Iterable[str | None]) -> str | None:
    """The most reachable of them; None where one was not tested and none is known to be reachable."""
    ways = set(reachable)
    return next((way for way in ("text", "special", None, "never") if way in ways), None)


def _false_claim(file: GGUFFile, control: list[dict[str, Any]]) -> str | None:
    """Where the keys say something else than the types of the tokens, which are what counts."""
    claimed = {name: file.text(PREFIX + name) for name in ("token_type", "reachable")}
    for token in control:
        kind, reached = token["type"], token["reachable"]
        if kind is None or (
            TYPES_OF_CLAIM.get(claimed["token_type"], kind) == kind and claimed["reachable"] in (reached, None)
        ):
            continue
        said = " and ".join(f"{name} {value!r}" for name, value in claimed.items() if value is not None)
        return f"the file says {said}, but token {token['id']} is {kind}: {REACHED_BY[reached]} becomes it"
    return None


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

    def text(piece: bytes, kind: str | None) -> str:
        is_sealed = stamp.token_type == "sealed" and kind in ("normal", None)
        return sealed_text(piece, model) if is_sealed else piece.decode(errors="replace")

    control = []
    for role, title, token_id, threshold in roles:
        kind = TOKEN_TYPES.get(kinds[token_id], "undefined") if token_id in kinds else None
        control.append(
            {
                "role": role,
                "title": title,
                "id": token_id,
                "text": text(raw[token_id], kind) if token_id in raw else None,
                "type": kind,
                "reachable": _worst((REACHABLE_BY_TYPE.get(kind or "", "never"), stamp.reachable)),
                "threshold": threshold,
            }
        )
    return control


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
        parts += [f"warning: {facts['false_claim']}"] if facts["false_claim"] else []
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
    rows = [
        [
            *(t["role"], str(t["id"]), _quoted(t["text"]), _type(t, facts), REACHED_BY[t["reachable"]]),
            terminal.number(t["threshold"]),
        ]
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
