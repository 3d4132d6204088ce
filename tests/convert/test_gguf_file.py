"""The GGUF reader: the same as the reference reader on good files, one clear line on every bad one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, UINT64, array, gguf, pair, tensor, text, u32, u64

from refusal_edge.errors import FormatError
from refusal_edge.gguf_file import GGUFArray, ValueType, read_gguf
from refusal_edge.gguf_verify import verify

F32, F16, Q8_0 = 0, 1, 8
ROW = bytes(4 * 32)
TOKENS = array("tokenizer.ggml.tokens", STRING, ["a", "b"])


def test_reads_what_the_reference_writer_writes(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = reference.GGUFWriter(path, "llama")
    scalars = {
        "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 1e300, "bool": True, "string": "naïve ☃",
    }  # fmt: skip
    for name, value in scalars.items():
        getattr(writer, f"add_{name}")(f"test.{name}", value)
    writer.add_array("test.strings", ["", "x", "☃" * 100])
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.25, -1.5])
    writer.add_array("test.bools", [True, False])
    weights = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones((3, 64), dtype=np.float16),
        "c": np.arange(5, dtype=np.int32),
    }
    for name, data in weights.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    theirs = reference.GGUFReader(path)
    with read_gguf(path) as file:
        assert file.version == 3
        assert file.alignment == 32
        assert {
            key.removeprefix("test."): file.kv[key] for key in file.kv if key.removeprefix("test.") in scalars
        } == scalars
        assert file.kv["test.strings"].tolist() == [b"", b"x", "☃".encode() * 100]
        assert file.kv["test.strings"].take([0, 2, 7, -1]) == {0: b"", 2: "☃".encode() * 100}
        assert file.kv["test.ints"].numpy().tolist() == [1, -2, 3]
        assert file.kv["test.floats"].tolist() == [0.25, -1.5]
        assert file.kv["test.bools"].tolist() == [True, False]
        assert [key for key in theirs.fields if not key.startswith("GGUF.")] == list(file.kv)
        assert file.data_offset == theirs.data_offset
        described = [
            (t.name, tuple(t.shape.tolist()), int(t.tensor_type), t.data_offset, t.n_bytes) for t in theirs.tensors
        ]
        assert described == [(t.name, t.shape, t.ggml_type, t.offset, t.n_bytes) for t in file.tensors.values()]
        raw = path.read_bytes()
        for name, data in weights.items():
            begin = file.tensors[name].offset
            assert raw[begin : begin + file.tensors[name].n_bytes] == data.tobytes()


def test_pairs_and_tensors_are_there_as_bytes(tmp_path: Path) -> None:
    pairs = [pair("a.b", UINT32, 7), TOKENS]
    infos = [tensor("t", (32, 2)), tensor("u", (32,), offset=256)]
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf(pairs, infos, data=ROW * 3))
    with read_gguf(path) as file:
        assert [file.raw(*span) for span in file.kv_spans.values()] == pairs
        assert file.raw(*file.tensors_span) == b"".join(infos)
        assert file.data_end == file.data_offset + 3 * len(ROW)
        assert isinstance(file.kv["tokenizer.ggml.tokens"], GGUFArray)
        assert file.kv_types["a.b"] is ValueType.UINT32


GOOD_TENSOR = tensor("t", (32,))
HOSTILE = {
    "empty": (b"", "too short"),
    "only a magic": (b"GGUF", "too short"),
    "other magic": (gguf(magic=b"GGML"), "not a GGUF file: begins with b'GGML'"),
    "version 1": (gguf(version=1), "GGUF version 1"),
    "version 4": (gguf(version=4), "GGUF version 4"),
    "big-endian": (b"GGUF" + (3).to_bytes(4, "big") + bytes(24), "big-endian"),
    "too many keys": (gguf(n_pairs=2**63), "claims 9223372036854775808 keys"),
    "too many tensors": (gguf(n_tensors=65_537), "claims 65537 tensors"),
    "fewer keys than claimed": (gguf(n_pairs=3), "key is empty"),
    "key longer than the file": (gguf([text("k", length=60_000)]), "needs 60000 bytes"),
    "key longer than allowed": (gguf([text("k", length=2**40)]), "at most 65535"),
    "empty key": (gguf([pair("", UINT32, 1)]), "key is empty"),
    "key that is not UTF-8": (gguf([pair(b"\xff\xfe", UINT32, 1)]), "not UTF-8"),
    "key twice": (gguf([pair("a", UINT32, 1), pair("a", UINT32, 2)]), "'a' appears twice"),
    "unknown value type": (gguf([text("a") + u32(13) + u64(0)]), "unknown value type 13"),
    "string longer than the file": (gguf([text("a") + u32(STRING) + u64(2**29)]), "needs 536870912 bytes"),
    "string of 2^64 - 1": (gguf([text("a") + u32(STRING) + u64(2**64 - 1)]), "at most 1073741824"),
    "boolean 2": (gguf([pair("a", BOOL, 2)]), "must be 0 or 1, got 2"),
    "array of arrays": (gguf([text("a") + u32(ARRAY) + u32(ARRAY) + u64(0)]), "arrays of arrays"),
    "array of 2^34 strings": (gguf([array("a", STRING, [], count=2**34)]), "claims 17179869184 elements"),
    "array of 2^29 strings": (gguf([array("a", STRING, [], count=2**29)]), "at most 4194304 allowed"),
    "array of 2^20 strings": (gguf([array("a", STRING, [], count=2**20)]), "needs 8388608 bytes"),
    "arrays of 2^22 + 1 strings": (
        gguf([array("a", STRING, [""] * 2**22), array("b", STRING, [""])]),
        "4194305 strings in arrays so far",
    ),
    "array of 2^29 integers": (gguf([array("a", UINT32, [], count=2**29)]), "needs 2147483648 bytes"),
    "string in an array beyond the end": (
        gguf([array("a", STRING, ["x"] * 8, count=10)], data=b"\xff" * 64),
        "string 8 of 10|string 9 of 10",
    ),
    "last string in an array beyond the end": (
        gguf([text("a") + u32(ARRAY) + u32(STRING) + u64(1) + u64(2**62)]),
        "string 0 of 1",
    ),
    "alignment 0": (gguf([pair("general.alignment", UINT32, 0)]), "power of two"),
    "alignment 24": (gguf([pair("general.alignment", UINT32, 24)]), "power of two"),
    "alignment 2^31": (gguf([pair("general.alignment", UINT32, 2**31)]), "power of two"),
    "alignment as uint64": (gguf([pair("general.alignment", UINT64, 32)]), "power of two"),
    "tensor name of 64 bytes": (gguf([], [tensor("x" * 64, (32,))], data=ROW), "at most 63"),
    "tensor twice": (gguf([], [GOOD_TENSOR, tensor("t", (32,), offset=128)], data=ROW * 2), "'t' appears twice"),
    "no dimensions": (gguf([], [tensor("t", ())], data=ROW), "0 dimensions"),
    "five dimensions": (gguf([], [tensor("t", (1,) * 5)], data=ROW), "5 dimensions"),
    "2^32 - 1 dimensions": (gguf([], [tensor("t", (1,), n_dims=2**32 - 1)], data=ROW), "4294967295 dimensions"),
    "dimension 0": (gguf([], [tensor("t", (32, 0))], data=ROW), "is 0"),
    "dimensions that overflow": (
        gguf([], [tensor("t", (2**33, 2**33))], data=ROW),
        "needs 295147905179352825856 bytes",
    ),
    "rows that do not fill a block": (gguf([], [tensor("t", (33,), kind=Q8_0)], data=ROW), "blocks of 32"),
    "removed type": (gguf([], [tensor("t", (32,), kind=4)], data=ROW), "unknown ggml type 4"),
    "unknown type": (gguf([], [tensor("t", (32,), kind=999)], data=ROW), "unknown ggml type 999"),
    "hole between tensors": (gguf([], [GOOD_TENSOR, tensor("u", (32,), offset=160)], data=ROW * 3), "expected 128"),
    "overlapping tensors": (gguf([], [GOOD_TENSOR, tensor("u", (32,), offset=64)], data=ROW * 2), "expected 128"),
    "first tensor not at 0": (gguf([], [tensor("t", (32,), offset=32)], data=ROW * 2), "expected 0"),
    "data cut off": (gguf([], [GOOD_TENSOR], data=ROW[:-1]), "download or convert it again"),
    "token types of another length": (gguf([TOKENS, array("tokenizer.ggml.token_type", INT32, [1])]), "2 elements"),
    "token types as uint32": (gguf([TOKENS, array("tokenizer.ggml.token_type", UINT32, [1, 1])]), "an array of int32"),
    "scores of another length": (gguf([TOKENS, array("tokenizer.ggml.scores", FLOAT32, [0.0] * 3)]), "2 elements"),
    "scores that are one string": (gguf([TOKENS, pair("tokenizer.ggml.scores", STRING, "x")]), "an array of float32"),
    "tokens that are numbers": (gguf([array("tokenizer.ggml.tokens", UINT32, [1])]), "an array of string"),
    "special id beyond the vocabulary": (gguf([TOKENS, pair("tokenizer.ggml.eos_token_id", UINT32, 2)]), r"\[0, 1\]"),
    "special id that is text": (gguf([TOKENS, pair("tokenizer.ggml.eos_token_id", STRING, "1")]), r"\[0, 1\]"),
    "513 blocks": (gguf([pair("llama.block_count", UINT32, 513)]), r"\[0, 512\]"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_gives_one_line_at_once(name: str, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    started = time.perf_counter()
    with pytest.raises(FormatError, match=message) as caught:
        read_gguf(path)
    assert time.perf_counter() - started < 0.5
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_prefix_of_a_file_is_refused_or_whole(tmp_path: Path) -> None:
    whole = gguf([pair("a", STRING, "text"), TOKENS, pair("b", BOOL, 1)], [GOOD_TENSOR], data=ROW)
    path = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_gguf(path)


def test_no_such_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")


def test_verify_reads_every_tensor_and_finds_what_is_not_a_number(tmp_path: Path) -> None:
    sound = np.linspace(-1, 1, 64, dtype=np.float32)
    broken = sound.astype(np.float16)
    broken[5], broken[6] = np.nan, np.inf
    block = np.zeros(34, dtype=np.uint8)
    block[:2] = np.array([np.nan], dtype=np.float16).view(np.uint8)
    infos = [tensor("f32", (64,)), tensor("f16", (64,), F16, 256), tensor("q8_0", (32,), Q8_0, 384)]
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([], infos, data=sound.tobytes() + broken.tobytes() + block.tobytes()))
    seen: list[int] = []
    with read_gguf(path) as file:
        result = verify(file, seen.append)
    assert result.n_bytes == sum(seen) == 256 + 128 + 34
    assert result.problems == (
        "tensor 'f16': 2 values or scales are NaN or infinite",
        "tensor 'q8_0': 1 values or scales are NaN or infinite",
    )


def test_verify_notices_a_file_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([], [tensor("t", (32, 1000))], data=ROW * 1000))
    with read_gguf(path) as file:
        os.truncate(path, file.data_offset + 1000)
        assert verify(file).problems == ("tensor 't': 127000 of 128000 bytes are gone",)


def test_reads_a_large_vocabulary_at_once(tmp_path: Path) -> None:
    """128k tokens and 280k merges: stepped over, not decoded. The reference reader needs seconds."""
    path = tmp_path / "large.gguf"
    tokens = array("tokenizer.ggml.tokens", STRING, [f"token{i}" for i in range(128_256)])
    merges = array("tokenizer.ggml.merges", STRING, [f"left{i} right{i}" for i in range(280_147)])
    path.write_bytes(gguf([tokens, merges]))
    fastest = min(_seconds_to_read(path) for _ in range(3))
    assert fastest < 0.5
    with read_gguf(path) as file:
        assert file.kv["tokenizer.ggml.tokens"].take([128_255]) == {128_255: b"token128255"}


def _seconds_to_read(path: Path) -> float:
    started = time.perf_counter()
    read_gguf(path).close()
    return time.perf_counter() - started
