"""Every guard of the safetensors reader and of the shard index, each with a small crafted file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import raw_safetensors, write_json, write_safetensors

from refusal_edge.convert import safetensors
from refusal_edge.convert.safetensors import other_weights, read_header, read_weights
from refusal_edge.errors import FormatError

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [1, 3], "data_offsets": [8, 20]}


def entry(**changes: Any) -> bytes:
    """A file with one tensor of two floats, its header changed."""
    return raw_safetensors({"a": A | changes}, bytes(8))


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "seven bytes": (bytes(7), "too short"),
    "header longer than the file": (raw_safetensors({"a": A}, bytes(8), header_bytes=1000), "claims a header of 1000"),
    "header of 2^63 bytes": (raw_safetensors({"a": A}, bytes(8), header_bytes=2**63), "claims a header"),
    "header of 2^64 - 1 bytes": (raw_safetensors({"a": A}, bytes(8), header_bytes=2**64 - 1), "claims a header"),
    "header shorter than its JSON": (raw_safetensors({"a": A}, bytes(8), header_bytes=9), "not valid JSON"),
    "not JSON": (raw_safetensors(b"\x80\x02}q\x00."), "not valid JSON"),
    "not UTF-8": (raw_safetensors(b'{"\xff\xfe": 1}'), "not valid JSON"),
    "a list": (raw_safetensors(b"[]"), "expected a JSON object"),
    "nested too deep": (raw_safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deep"),
    "endless digits": (raw_safetensors(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}"), "digits"),
    "a name twice": (raw_safetensors(b'{"a": {"dtype": "U8"}, "a": {"dtype": "U8"}}'), "'a' appears twice"),
    "a key of a tensor twice": (raw_safetensors(b'{"a": {"dtype": "U8", "dtype": "U8"}}'), "'dtype' appears twice"),
    "NaN in the header": (raw_safetensors(b'{"a": {"dtype": "F32", "shape": [NaN]}}'), "NaN is not a JSON number"),
    "tensor is no object": (raw_safetensors({"a": [1]}), "expected an object"),
    "no dtype": (raw_safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "unknown dtype None"),
    "unknown dtype": (entry(dtype="F4"), "unknown dtype 'F4'"),
    "dtype is a list": (entry(dtype=["F32"]), "unknown dtype"),
    "no shape": (entry(shape=None), "shape must be"),
    "negative dimension": (entry(shape=[-2]), "shape must be"),
    "dimension is a float": (entry(shape=[2.0]), "shape must be"),
    "dimension is a boolean": (entry(shape=[True, 2]), "shape must be"),
    "dimension of 2^64": (entry(shape=[2**64]), "shape must be"),
    "too many dimensions": (entry(shape=[1] * 9 + [2]), "shape must be"),
    "sizes whose product wraps to 8 bytes": (entry(shape=[2**62 + 1, 2]), "needs"),
    "shape and range differ": (entry(shape=[3]), "F32 [3] needs 12 bytes"),
    "range runs backwards": (entry(data_offsets=[8, 0]), "begin <= end"),
    "three offsets": (entry(data_offsets=[0, 4, 8]), "data_offsets must be"),
    "offsets are text": (entry(data_offsets=["0", "8"]), "data_offsets must be"),
    "beyond the end": (entry(data_offsets=[8, 16]), "leaves a hole"),
    "truncated data": (raw_safetensors({"a": A}, bytes(7)), "is truncated"),
    "bytes that belong to nothing": (raw_safetensors({"a": A}, bytes(9)), "no tensor claims"),
    "overlap": (raw_safetensors({"a": A, "b": B | {"data_offsets": [4, 16]}}, bytes(16)), "overlaps"),
    "hole": (raw_safetensors({"a": A, "b": B | {"data_offsets": [12, 24]}}, bytes(24)), "leaves a hole"),
    "two tensors on one range": (raw_safetensors({"a": A, "b": A}, bytes(8)), "overlaps"),
    "metadata is a list": (raw_safetensors({"__metadata__": [], "a": A}, bytes(8)), "__metadata__"),
    "metadata of numbers": (raw_safetensors({"__metadata__": {"x": 1}, "a": A}, bytes(8)), "__metadata__"),
    "a name of many lines": (raw_safetensors({"a\nb" * 100: [1]}), "expected an object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_broken_files_in_one_line(name: str, tmp_path: Path) -> None:
    data, message = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as error:
        read_header(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))


def test_refuses_a_header_larger_than_any_model_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors({"a": A}, bytes(8)))
    monkeypatch.setattr(safetensors, "MAX_HEADER_BYTES", 16)
    with pytest.raises(FormatError, match="at most 16"):
        read_header(path)


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="holds our reader against the safetensors package")
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(4, dtype=np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(7, np.int64),
    }
    path = tmp_path / "model.safetensors"
    library.save_file(arrays, path, metadata={"format": "np"})
    data, tensors = path.read_bytes(), read_header(path)
    assert tensors.keys() == arrays.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == arrays[name].shape
        assert data[tensor.offset : tensor.offset + tensor.n_bytes] == arrays[name].tobytes()


# Shards and their index


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards of one tensor each."""
    for i, name in enumerate("ab"):
        path = tmp_path / f"model-{i + 1:05d}-of-00002.safetensors"
        write_safetensors(path, [(name, np.full((2, 2), i, np.float32))])
    write_index(tmp_path, {"a": shard(1), "b": shard(2)})
    return tmp_path


def shard(number: int) -> str:
    return f"model-{number:05d}-of-00002.safetensors"


def write_index(folder: Path, weight_map: Any) -> None:
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def test_reads_shards_with_and_without_index(sharded: Path) -> None:
    assert list(read_weights(sharded)) == ["a", "b"]
    (sharded / "model.safetensors.index.json").unlink()
    assert list(read_weights(sharded)) == ["a", "b"]


def test_a_single_file_wins_over_shards_as_in_transformers(sharded: Path) -> None:
    assert list(other_weights(sharded)) == []
    write_safetensors(sharded / "model.safetensors", [("new", np.zeros((2, 2), np.float32))])
    assert list(read_weights(sharded)) == ["new"]
    (warning,) = other_weights(sharded)
    assert f"'{shard(1)}', '{shard(2)}', 'model.safetensors.index.json' beside it" in warning
    for old in sharded.glob("model-*"):
        old.unlink()
    assert list(read_weights(sharded)) == ["new"]  # the index alone is stale, not a set with missing shards
    assert "'model.safetensors.index.json' beside it" in next(other_weights(sharded))
    (sharded / "model.safetensors.index.json").unlink()
    assert list(other_weights(sharded)) == []


@pytest.mark.parametrize(
    "target",
    [
        *("../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors", "..\\x.safetensors", ".safetensors"),
        *("model.bin", "", ".", "..", "a\0b.safetensors", "a\nb.safetensors", None, 3, ["x"]),
    ],
)
def test_refuses_paths_in_the_index(sharded: Path, target: Any) -> None:
    (sharded.parent / "secret.safetensors").write_bytes(b"")
    write_index(sharded, {"a": shard(1), "b": target})
    with pytest.raises(FormatError, match=r"plain name of a \.safetensors file"):
        read_weights(sharded)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": shard(1), "b": "model-00003-of-00002.safetensors"}, "1 of 2 shards are missing"),
        ({"a": shard(1)}, None),  # the other shard is not part of it
        ({"a": shard(1), "b": shard(1)}, "1 tensors are not in the shard"),
        ({"a": shard(2), "b": shard(1)}, "2 tensors are not in the shard"),
        ({"a": shard(1), "b": shard(2), "c": shard(2)}, "1 tensors are not in the shard"),
        ({"b": shard(2), "c": shard(1)}, "1 tensors are not in the shard"),
        ({}, "weight_map must be"),
        ([], "weight_map must be"),
        (None, "weight_map must be"),
    ],
)
def test_index_must_name_every_tensor_once(sharded: Path, weight_map: Any, message: str | None) -> None:
    write_index(sharded, weight_map)
    if message is None:
        assert list(read_weights(sharded)) == ["a"]
        return
    with pytest.raises(FormatError, match=message):
        read_weights(sharded)


def test_refuses_tensors_the_index_does_not_list(sharded: Path) -> None:
    write_safetensors(sharded / shard(2), [("b", np.zeros(2, np.float32)), ("stray", np.zeros(2, np.float32))])
    with pytest.raises(FormatError, match=r"1 tensors of the shards are not listed \('stray'\)"):
        read_weights(sharded)


def test_refuses_one_tensor_in_two_shards(sharded: Path) -> None:
    write_safetensors(sharded / shard(2), [("b", np.zeros(2, np.float32)), ("a", np.zeros(2, np.float32))])
    with pytest.raises(FormatError, match="'a' is stored twice"):
        read_weights(sharded)


def test_refuses_a_name_twice_in_the_index(sharded: Path) -> None:
    text = json.dumps({"weight_map": {"a": shard(1)}}).replace('"a":', f'"a": "{shard(2)}", "a":')
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError, match="'a' appears twice"):
        read_weights(sharded)


def test_refuses_an_incomplete_set_without_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / shard(1)).unlink()
    with pytest.raises(FormatError, match="do not form one set of 2"):
        read_weights(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_refuses_pickle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FormatError, match="only pickle weights"):
        read_weights(tmp_path)


def test_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no model\.safetensors"):
        read_weights(tmp_path)
