"""`refusal-edge convert` against llama.cpp's own converter, on the same checkpoint, in one run.

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    python bench/bench_convert.py llama_cpp_python-0.3.36/vendor/llama.cpp

Not measured: a cold page cache, real weights (these are random, with the real Llama 3 vocabulary), more than the cores
of this machine. Upstream needs torch and transformers. Before anything is timed both files must hold the same tensors,
byte for byte, and the same keys but those of `WE_DIFFER`. Each run is a process of its own; memory is the peak of the
proportional set size of its whole process tree, sampled. Upstream does not flush its file to the disk, we do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from refusal_edge.gguf_file import GGUFArray, read_gguf

MUST_BE_FASTER, MUST_FIT_MIB = 3.0, 256
WE_DIFFER = {
    "tokenizer.ggml.tokens": "control tokens are sealed: byte-encoded, so that no text becomes one",
    "tokenizer.ggml.token_type": "sealed control tokens are NORMAL",
    "tokenizer.ggml.eot_token_id": "the end of a turn ends the answer",
}
CONTROL = ("Humanizing requests", "Incomplete requests", "Indeterminate requests", "Requests with safety concerns")
CONTROL_TEXTS = [f" [{title}]" for title in (*CONTROL, "Unsupported requests", "respond")]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OURS = "import sys; from refusal_edge.cli import main; sys.exit(main(['convert', *sys.argv[1:]]))"


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int


SHAPES = {"0.5b": Shape(1024, 24, 16, 8, 2816), "8b-one-layer": Shape(4096, 1, 32, 8, 14336)}


def main() -> int:
    args = parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for name in args.models:
            folder = write_checkpoint(Path(scratch) / f"bench-{name}", SHAPES[name], args.llama_cpp)
            for outtype in args.types:
                rows.append(measure(name, folder, outtype, args))
                print(rows[-1] if args.json else describe(rows[-1]), file=sys.stderr if args.json else sys.stdout)
            shutil.rmtree(folder)
    if args.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=2))
    return 0 if all(row["faster"] >= MUST_BE_FASTER and row["ours"]["peak_mib"] <= MUST_FIT_MIB for row in rows) else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path, help="folder of llama.cpp's sources")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--types", nargs="+", default=["f16", "bf16", "q8_0"], choices=["f16", "bf16", "q8_0"])
    parser.add_argument("--runs", type=int, default=3, help="of each, alternating; the fastest counts")
    parser.add_argument("--scratch", type=Path, help="where to put some 15 GB of temporary files")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure(name: str, folder: Path, outtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both converters on one checkpoint: first compared, then timed in turn."""
    ours, theirs = folder.parent / "ours.gguf", folder.parent / "theirs.gguf"
    contenders = {
        "ours": [sys.executable, "-c", OURS, str(folder), "-o", str(ours), "--outtype", outtype, "--force"],
        "theirs": [
            *(sys.executable, str(args.llama_cpp / "convert_hf_to_gguf.py"), str(folder)),
            *("--outfile", str(theirs), "--outtype", outtype),
        ],
    }
    runs: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for command in contenders.values():
        run(command)
    same = compare(ours, theirs)
    for _ in range(args.runs):
        for contender, command in contenders.items():
            runs[contender].append(run(command))
    best = {
        contender: {
            "seconds": round(min(seconds for seconds, _ in done), 2),
            "peak_mib": round(max(mib for _, mib in done)),
        }
        for contender, done in runs.items()
    }
    ours.unlink()
    theirs.unlink()
    faster = best["theirs"]["seconds"] / best["ours"]["seconds"]
    return {"model": name, "type": outtype, "faster": round(faster, 2), **best, **same}


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command and its children."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    os.sync()  # what earlier runs left to be written is not this one's work
    started, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as output:
        process = psutil.Popen(command, stdout=output, stderr=output, env=environment)
        while process.poll() is None:
            peak = max(peak, sum(memory_of([process, *process.children(recursive=True)])))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode != 0:
            output.seek(0)
            raise SystemExit(f"{command[1:4]} failed:\n{output.read().decode(errors='replace')[-2000:]}")
    return seconds, peak


def memory_of(processes: list[psutil.Process]) -> Iterator[float]:
    for process in processes:
        try:
            memory = process.memory_full_info()
            yield getattr(memory, "pss", memory.rss) / 2**20
        except psutil.Error:  # it has just ended
            yield 0.0


def compare(ours: Path, theirs: Path) -> dict[str, int]:
    """Raises SystemExit unless all tensors are equal and all keys but those of `WE_DIFFER` are."""
    with read_gguf(ours) as a, read_gguf(theirs) as b, open(ours, "rb") as file_a, open(theirs, "rb") as file_b:
        if a.tensors.keys() != b.tensors.keys():
            raise SystemExit(f"other tensors: {a.tensors.keys() ^ b.tensors.keys()}")
        for name, tensor in a.tensors.items():
            other = b.tensors[name]
            if (tensor.shape, tensor.ggml_type) != (other.shape, other.ggml_type):
                raise SystemExit(f"{name}: {tensor} is not {other}")
            for done in range(0, tensor.n_bytes, 1 << 24):
                size = min(1 << 24, tensor.n_bytes - done)
                if os.pread(file_a.fileno(), size, tensor.offset + done) != os.pread(
                    file_b.fileno(), size, other.offset + done
                ):
                    raise SystemExit(f"{name}: other bytes")
        keys_a = {key: plain(value) for key, value in a.kv.items() if not key.startswith("refusal_edge.")}
        keys_b = {key: plain(value) for key, value in b.kv.items()}
        different = {key for key in keys_a.keys() | keys_b.keys() if keys_a.get(key) != keys_b.get(key)}
        if not different <= WE_DIFFER.keys():
            raise SystemExit(f"other keys: {different - WE_DIFFER.keys()}")
    return {"same_tensors": len(a.tensors), "same_keys": len(keys_b.keys() - different), "other_keys": len(different)}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, GGUFArray) else value


def describe(row: dict[str, Any]) -> str:
    used = [f"{who} {row[who]['seconds']:6.2f} s {row[who]['peak_mib']:5} MiB" for who in ("ours", "theirs")]
    same = f"{row['same_tensors']} tensors and {row['same_keys']} keys equal, {row['other_keys']} keys differ"
    return f"{row['model']:13} {row['type']:5} {row['faster']:5.2f}x faster   {'   '.join(used)}   {same}"


def machine() -> dict[str, Any]:
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    return {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg(), **versions}


# The checkpoint


def write_checkpoint(folder: Path, shape: Shape, llama_cpp: Path) -> Path:
    """Random bfloat16 weights in two shards, the real Llama 3 vocabulary and six control tokens."""
    folder.mkdir()
    n_tokens = write_tokenizer(folder, llama_cpp / "models" / "ggml-vocab-llama-bpe.gguf")
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.ffn,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "vocab_size": n_tokens,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
    )
    shapes = list(tensor_shapes(shape, n_tokens))
    half, weight_map = len(shapes) // 2, {}
    for i, part in enumerate((shapes[:half], shapes[half:])):
        name = f"model-{i + 1:05d}-of-00002.safetensors"
        write_shard(folder / name, part, seed=i)
        weight_map |= {tensor: name for tensor, _ in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def tensor_shapes(shape: Shape, n_tokens: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    keys = shape.hidden // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (n_tokens, shape.hidden)
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        yield f"{layer}self_attn.q_proj.weight", (shape.hidden, shape.hidden)
        yield f"{layer}self_attn.k_proj.weight", (keys, shape.hidden)
        yield f"{layer}self_attn.v_proj.weight", (keys, shape.hidden)
        yield f"{layer}self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield f"{layer}mlp.gate_proj.weight", (shape.ffn, shape.hidden)
        yield f"{layer}mlp.up_proj.weight", (shape.ffn, shape.hidden)
        yield f"{layer}mlp.down_proj.weight", (shape.hidden, shape.ffn)
        yield f"{layer}input_layernorm.weight", (shape.hidden,)
        yield f"{layer}post_attention_layernorm.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (n_tokens, shape.hidden)


def write_shard(path: Path, shapes: list[tuple[str, tuple[int, ...]]], seed: int) -> None:
    header, end = {}, 0
    for name, dims in shapes:
        n_bytes = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(header).encode()
    generator = np.random.default_rng(seed)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done in range(0, end, 1 << 25):
            values = generator.standard_normal(min(1 << 25, end - done) // 2, dtype=np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def write_tokenizer(folder: Path, vocabulary: Path) -> int:
    """tokenizer.json from llama.cpp's copy of the vocabulary; returns the number of tokens."""
    with read_gguf(vocabulary) as file:
        tokens = [token.decode() for token in file.kv["tokenizer.ggml.tokens"]]
        types = list(file.kv["tokenizer.ggml.token_type"])
        merges = [merge.decode() for merge in file.kv["tokenizer.ggml.merges"]]
    special = [(i, text) for i, (text, kind) in enumerate(zip(tokens, types)) if kind != 1]
    added = [added_token(i, text, special=True) for i, text in special]
    added += [added_token(len(tokens) + i, text, special=False) for i, text in enumerate(CONTROL_TEXTS)]
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    first, second = (
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": "AB"[i], "type_id": i}}] for i in (0, 1)
    )
    begin = {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}
    template = {"type": "TemplateProcessing", "single": first, "pair": first + second, "special_tokens": {bos: begin}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    vocab = {text: i for i, (text, kind) in enumerate(zip(tokens, types)) if kind == 1}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": {"type": "Sequence", "processors": [byte_level, template]},
            "decoder": byte_level,
            "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges},
        },
    )
    decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    config = {"added_tokens_decoder": decoder, "bos_token": bos, "eos_token": eos}
    write_json(folder / "tokenizer_config.json", {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    return len(tokens) + len(CONTROL_TEXTS)


def added_token(token_id: int, text: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": token_id, "content": text, **flags}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
