"""The screen that a person reads, and the document that a program reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_bytes import BOOL, FLOAT32, INT32, STRING, UINT32, array, gguf, pair, tensor

from refusal_edge.cli import main
from refusal_edge.keys import Stamp
from refusal_edge.policy import Category

KINDS = {int: UINT32, float: FLOAT32, str: STRING}
STAMP = Stamp(3, (Category("safety", 2, 0.3, "Requests with safety concerns"), Category("odd", 1)), reachable="never")
MODEL = [
    pair("general.architecture", STRING, "llama"),
    pair("general.name", STRING, "Edge \x1b[31mred"),
    pair("general.file_type", UINT32, 15),
    pair("llama.block_count", UINT32, 2),
    pair("llama.context_length", UINT32, 4096),
    pair("tokenizer.ggml.model", STRING, "gpt2"),
    pair("tokenizer.ggml.pre", STRING, "llama-bpe"),
    array("tokenizer.ggml.tokens", STRING, ["<s>", "Ġ[odd]", "Ġ[nicht" + "Ã¼" + "blich]", "Ġ[respond]"]),
    array("tokenizer.ggml.token_type", INT32, [3, 1, 1, 1]),
    pair("tokenizer.ggml.bos_token_id", UINT32, 0),
    pair("tokenizer.ggml.eos_token_id", UINT32, 0),
    pair("tokenizer.ggml.add_bos_token", BOOL, 1),
    pair("tokenizer.chat_template", STRING, "{{ messages }}"),
]
TENSORS = [tensor("a", (32, 2)), tensor("b", (256,), kind=14, offset=256)]
DATA = bytes(256 + 210)


def write(path: Path, stamp: Stamp | None = STAMP, *, data: bytes = DATA) -> Path:
    keys = [pair(k, KINDS[type(v)], v) for k, v, _ in stamp.to_kv()] if stamp else []
    path.write_bytes(gguf([*MODEL, *keys], TENSORS, data=data))
    return path


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["inspect", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_screen_names_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(write(tmp_path / "m.gguf"), capsys=capsys)
    assert (code, err) == (0, "")
    for part in (
        "Q4_K_M",
        "llama, 2 blocks, context 4,096",
        "2 (1 F32, 1 Q6_K)",
        "4 tokens, byte-level BPE, pre-tokenizer llama-bpe",
        "with 0 <s>",
        "14 bytes, sha256",
        '" [nichtüblich]"',
        "no text",
        "rule threshold, score control, temperature 1",
        "below 0.5 control mass: the model goes on by itself",
        "calibration  none",
    ):
        assert part in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["safety"][1:] == ["2", '"', '[nichtüblich]"', "sealed", "no", "text", "0.3"]
    assert lines["odd"][-1] == "model"
    assert lines["respond"][1] == "3"
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 110


def test_the_document_holds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m.gguf", replace(STAMP, calibration={"method": "np", "n": 59}))
    code, out, _ = run(path, "--json", capsys=capsys)
    facts = json.loads(out)
    assert code == 0
    assert facts["model"] == {
        "name": "Edge \x1b[31mred",
        "architecture": "llama",
        "n_params": 64 + 256,
        "n_blocks": 2,
        "context_length": 4096,
        "file_type": "Q4_K_M",
        "n_tensors": 2,
        "tensor_types": {"F32": 1, "Q6_K": 1},
    }
    assert facts["control_tokens"][0] == {
        "role": "safety",
        "title": "Requests with safety concerns",
        "id": 2,
        "text": " [nichtüblich]",
        "type": "normal",
        "reachable": "never",
        "threshold": 0.3,
    }
    assert facts["control_tokens"][-1]["role"] == "respond"
    assert facts["policy"] == STAMP.policy.to_dict()
    assert (facts["reachable"], facts["token_type"]) == ("never", "sealed")
    assert facts["calibration"] == {"method": "np", "n": 59}
    assert facts["vocabulary"]["bos"] == {"id": 0, "text": "<s>"}


@pytest.mark.parametrize(
    ("kind", "word", "reached"), [(4, "user-defined", "any text"), (3, "control", "special-token text")]
)
def test_what_the_vocabulary_says_counts(
    kind: int, word: str, reached: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file may claim to be sealed; llama.cpp goes by the types of its tokens."""
    path = write(tmp_path / "m.gguf")
    types = [array("tokenizer.ggml.token_type", INT32, values) for values in ([3, 1, 1, 1], [3, 1, kind, 1])]
    path.write_bytes(path.read_bytes().replace(*types))
    code, out, _ = run(path, capsys=capsys)
    assert code == 0
    safety, odd = (
        next(line for line in out.splitlines() if line.startswith(f"  {role}")) for role in ("safety", "odd")
    )
    assert f"{word}  " in safety
    assert reached in safety
    assert "sealed" in odd
    assert "no text" in odd
    said = "the file says token_type 'sealed' and reachable 'never', but token 2 is"
    assert f"warning: {said} {word}: {reached} becomes it" in out
    facts = json.loads(run(path, "--json", capsys=capsys)[1])
    assert facts["reachable"] == facts["control_tokens"][0]["reachable"] == {"any text": "text"}.get(reached, "special")
    assert facts["control_tokens"][1]["reachable"] == "never"


def test_keys_without_their_version_are_broken_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([*MODEL, pair("refusal_edge.respond_token_id", UINT32, 3)]))
    code, out, err = run(path, capsys=capsys)
    assert (code, out) == (2, "")
    assert f"{path}: has refusal_edge.respond_token_id but no refusal_edge.version" in err


def test_the_document_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([pair("general.name", STRING, "a\u009b31m\u202eb\U000e0001é")]))
    _, out, _ = run(path, "--json", capsys=capsys)
    assert out.isascii()
    assert json.loads(out)["model"]["name"] == "a\u009b31m\u202eb\U000e0001é"


def test_a_pipe_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, _, err = run(tmp_path / "pipe", capsys=capsys)
    assert code == 2
    assert "pipe: not a regular file" in err


def test_a_file_without_our_keys_says_how_to_add_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m.gguf", None)
    code, out, _ = run(path, capsys=capsys)
    assert code == 0
    assert f"refusal-edge annotate {path} -o OUT.gguf" in out
    _, out, _ = run(path, "--json", capsys=capsys)
    assert json.loads(out)["control_tokens"] is None


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(write(tmp_path / "m.gguf"), "--verify", capsys=capsys)
    assert code == 0
    assert "read 466 bytes of tensor data" in out
    assert "no problem found" in out
    not_a_number = b"\x00\x00\xc0\x7f" + DATA[4:]
    path = write(tmp_path / "nan.gguf", data=not_a_number)
    code, out, _ = run(path, "--verify", capsys=capsys)
    assert code == 1
    assert "tensor 'a': 1 values or scales are NaN or infinite" in out
    code, out, _ = run(path, "--verify", "--json", capsys=capsys)
    assert (code, json.loads(out)["verification"]["sound"]) == (1, False)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"PK\x03\x04" + bytes(100), gguf(n_pairs=2**40)])
def test_a_broken_file_is_one_line(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    code, out, err = run(path, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(path) in err


def test_keys_that_contradict_the_vocabulary_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(write(tmp_path / "m.gguf", Stamp(4, (Category("a", 1),))), capsys=capsys)
    assert code == 2
    assert f"{tmp_path / 'm.gguf'}: refusal_edge.respond_token_id: token id 4 is out of range; the vocabulary" in err


def test_keys_without_a_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    types = array("tokenizer.ggml.token_type", INT32, [1])
    path.write_bytes(gguf([types, *(pair(k, KINDS[type(v)], v) for k, v, _ in STAMP.to_kv())]))
    code, out, _ = run(path, "--json", capsys=capsys)
    assert code == 0
    assert [(t["text"], t["type"]) for t in json.loads(out)["control_tokens"]] == [(None, None)] * 3
    assert run(path, capsys=capsys)[0] == 0


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    """Half a second leaves no room for llama.cpp or gguf."""
    path = write(tmp_path / "m.gguf")
    script = (
        "import sys\n"
        "from refusal_edge.cli import main\n"
        "main(['inspect', sys.argv[1]])\n"
        "print([m for m in ('llama_cpp', 'gguf', 'torch', 'transformers', 'tqdm') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
