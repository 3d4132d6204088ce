"""`--quantize`: the tensors that llama_model_quantize writes, without the file in between."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cases import QKV
from checkpoints import Shape, write_checkpoint

from refusal_edge.convert import convert
from refusal_edge.convert.checkpoint import open_checkpoint
from refusal_edge.convert.mix import MIXES
from refusal_edge.convert.plan import PlannedTensor, make_plan
from refusal_edge.convert.quantize import encode
from refusal_edge.convert.recipe import parse_recipe
from refusal_edge.convert.rows import OpenFiles, StoredRows
from refusal_edge.errors import ConversionError
from refusal_edge.gguf_file import read_gguf

DEEP = Shape(hidden=256, layers=17, heads=2, kv_heads=1, head_dim=32, ffn=256)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"shape": DEEP},
    "eight layers": {"shape": replace(DEEP, layers=8)},
    "tied, many queries for one value": {
        "arch": "qwen2",
        "tied": True,
        "biases": QKV,
        "shape": Shape(hidden=256, layers=9, heads=4, kv_heads=1, head_dim=64, ffn=256),
    },
    "fused": {
        "arch": "phi3",
        "vocab": "spm",
        "shape": Shape(hidden=256, layers=9, heads=4, kv_heads=4, head_dim=64, ffn=256),
    },
    "rows of 32": {"shape": Shape(hidden=96, ffn=160, layers=3, head_dim=32)},
}
SLOW = {"IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"}  # ggml searches: 4 to 10 MB/s
PAIRS = [("llama", mix) for mix in MIXES if mix not in SLOW]
PAIRS += [("eight layers", mix) for mix in sorted(SLOW)]
PAIRS += [
    (model, mix) for model in list(MODELS)[2:] for mix in ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q6_K", "IQ4_XS")
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Name -> checkpoint, and its conversion to float32, which llama.cpp can quantize."""
    root = tmp_path_factory.mktemp("mix")

    @cache
    def build(name: str) -> tuple[Path, Path]:
        folder = write_checkpoint(root / name, **MODELS[name])
        convert(folder, root / f"{name}.gguf", outtype="f32")
        return folder, root / f"{name}.gguf"

    return build


@pytest.mark.parametrize(("model", "mix"), PAIRS)
def test_same_bytes_as_llama_model_quantize(model: str, mix: str, models: Any, tmp_path: Path) -> None:
    """The type of every tensor, and the bytes of its first rows; the next test compares a whole file."""
    folder, source = models(model)
    ours, theirs = our_tensors(folder, mix), their_tensors(source, tmp_path / "theirs.gguf", mix)
    assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
    assert all(theirs[name][1].startswith(data) for name, (_, data) in ours.items())


def test_the_file_holds_what_was_planned(models: Any, tmp_path: Path) -> None:
    folder, source = models("llama")
    report = convert(folder, tmp_path / "ours.gguf", quantize="q4_k_m")
    assert report.file_type == "Q4_K_M"
    assert tensors_in(tmp_path / "ours.gguf") == their_tensors(source, tmp_path / "theirs.gguf", "Q4_K_M")


def test_head_is_as_asked(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shape=DEEP)
    for head, expected in ((None, "Q8_0"), ("f16", "F16"), ("q6_k", "Q6_K")):
        assert our_tensors(folder, "Q4_K_M", head)["output.weight"][0] == expected
    assert our_tensors(folder, "Q5_K_M", None)["output.weight"][0] == "Q6_K"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "IQ2_XXS"}, "importance matrix"),
        ({"quantize": "Q9_K"}, "--quantize 'Q9_K': allowed are Q2_K"),
        ({"outtype": "int4"}, "--outtype 'int4': allowed are f32"),
        ({"outtype": "q8_0", "head": "f12"}, "--head 'f12': allowed are f32"),
    ],
)
def test_refuses_unknown_types(options: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "out.gguf", **options)
    assert not (tmp_path / "out.gguf").exists()


def our_tensors(folder: Path, mix: str, head: str | None = None) -> dict[str, Any]:
    """Name -> (type, bytes of the first rows) of every tensor."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.family.read_config(checkpoint.config, "config.json")
    recipe = parse_recipe(None, mix, head, config, checkpoint.family.arch)
    sources = {name: StoredRows(tensor) for name, tensor in checkpoint.weights.items()}
    plan = make_plan(checkpoint.family, config, sources, recipe.choose)
    with OpenFiles() as files:
        return {tensor.name: (tensor.type.name, first_rows(tensor, files)) for tensor in plan.tensors}


def first_rows(tensor: PlannedTensor, files: OpenFiles) -> bytes:
    rows = tensor.rows.read(files, 0, min(32, tensor.rows.n_rows))
    return encode(rows, tensor.rows.dtype, tensor.type).tobytes()


def their_tensors(source: Path, out: Path, mix: str) -> dict[str, Any]:
    """What llama_model_quantize makes of a float32 file, with the head that we choose."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(MIXES[mix].file_type), 2
    params.output_tensor_type = int(MIXES[mix].head)
    if MIXES[mix].head.name == "Q6_K":
        params.output_tensor_type = llama_cpp.GGML_TYPE_COUNT  # llama.cpp's own choice
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    assert status == 0
    return tensors_in(out)


def tensors_in(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    with read_gguf(path) as file:
        return {t.name: (t.type_name, data[t.offset : t.offset + t.n_bytes]) for t in file.tensors.values()}
