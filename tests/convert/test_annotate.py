"""Stamping files that other tools made."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
from gguf import GGUFValueType
from gguf_bytes import STRING, UINT32, array, gguf, pair, tensor
from stock_llama import tokenizer

from refusal_edge.byte_level import BYTE_TO_CHAR
from refusal_edge.cli import main
from refusal_edge.convert import gguf_rewrite
from refusal_edge.convert.annotate import annotate
from refusal_edge.errors import ConversionError, InvalidPolicyError, MetadataError
from refusal_edge.gguf_file import read_gguf
from refusal_edge.gguf_verify import verify
from refusal_edge.keys import Stamp

ADDED = ["<|end|>", " [refuse]", " [respond]"]
EOS, REFUSE, RESPOND = 256, 257, 258


def other_tools_file(path: Path, *, arch: str = "qwen2", model: str = "gpt2", alignment: int = 32) -> Path:
    """As llama.cpp's converter would write it: user-defined control tokens; an array that nobody knows, odd sizes."""
    writer = reference.GGUFWriter(path, arch)
    writer.add_custom_alignment(alignment)
    writer.add_name("A Model")
    writer.add_array("other.tool.list", [1.5, 2.5])
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*BYTE_TO_CHAR, *ADDED])
    writer.add_token_types([1] * 256 + [3, 4, 4])
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)
    rng = np.random.default_rng(1)
    writer.add_tensor("a.weight", rng.standard_normal((3, 33), dtype=np.float32))
    writer.add_tensor("b.weight", rng.standard_normal((5, 7)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return other_tools_file(tmp_path / "in.gguf")


def kv(path: Path) -> dict[str, Any]:
    with read_gguf(path) as file:
        return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in file.kv.items()}


@pytest.mark.parametrize("alignment", [32, 128])
def test_everything_but_the_control_tokens_stays_as_it_was(alignment: int, tmp_path: Path) -> None:
    source, out = other_tools_file(tmp_path / "in.gguf", alignment=alignment), tmp_path / "out.gguf"
    report = annotate(source, out)
    before, after = kv(source), kv(out)
    changed = {key for key in after if before.get(key) != after[key]}
    assert {key for key in changed if not key.startswith("refusal_edge.")} == {
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
    }
    assert [key for key in after if key in before] == list(before)
    assert after["tokenizer.ggml.tokens"][:REFUSE] == before["tokenizer.ggml.tokens"][:REFUSE]
    assert after["tokenizer.ggml.tokens"][REFUSE:] == ["Ġ[refuse]".encode(), "Ġ[respond]".encode()]
    assert after["tokenizer.ggml.token_type"][EOS:] == [3, 1, 1]

    theirs, ours = reference.GGUFReader(source), reference.GGUFReader(out)  # a reader that is not ours
    assert [(t.name, t.tensor_type, t.data.tobytes()) for t in theirs.tensors] == [
        (t.name, t.tensor_type, t.data.tobytes()) for t in ours.tensors
    ]
    assert out.stat().st_size - -(-report.n_bytes // alignment) * alignment == 0
    with read_gguf(source) as a, read_gguf(out) as b:
        assert verify(a).sha256 == verify(b).sha256
    assert (report.stamp.token_type, report.stamp.reachable) == ("sealed", "never")
    assert Stamp.from_kv(after) == report.stamp


def test_text_no_longer_reaches_the_tokens(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    annotate(source, out)
    with tokenizer(source) as tokenize:
        assert REFUSE in tokenize("I say [refuse]")
    with tokenizer(out) as tokenize:
        assert not {REFUSE, RESPOND} & {*tokenize("I say [refuse] [respond]", special=True)}
        assert tokenize.piece(REFUSE) == b" [refuse]"


def test_annotating_twice_changes_nothing(source: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    annotate(source, once, thresholds={"refuse": 0.25})
    report = annotate(once, twice)
    assert report.changes == ()
    assert once.read_bytes() == twice.read_bytes()


def test_thresholds_change_alone_and_end_the_calibration(source: Path, tmp_path: Path) -> None:
    once, twice, thrice = (tmp_path / f"{i}.gguf" for i in range(3))
    annotate(source, once)
    stamp = Stamp.from_kv(kv(once))
    calibrated = replace(stamp, calibration={"method": "np", "n": 59}, min_control_mass=0.25)
    with read_gguf(once) as file:
        pairs = {key: gguf_rewrite.KeyValue(key, value, kind) for key, value, kind in calibrated.to_kv()}
        twice.write_bytes(gguf_rewrite.rewritten_header(file, pairs) + once.read_bytes()[file.data_offset :])
    report = annotate(twice, thrice, thresholds={"refuse": "off"})
    assert {change.key: (change.old, change.new) for change in report.changes} == {
        "refusal_edge.category.0.threshold": (-1.0, 2.0),
        "refusal_edge.calibration.method": ("np", None),
        "refusal_edge.calibration.n": (59, None),
    }
    result = Stamp.from_kv(kv(thrice))
    assert (result.categories[0].threshold, result.calibration, result.min_control_mass) == ("off", None, 0.25)
    assert Stamp.from_kv(kv(twice)).calibration == {"method": "np", "n": 59}
    assert annotate(twice, tmp_path / "kept.gguf").stamp.calibration == {"method": "np", "n": 59}


def test_broken_keys_are_replaced_where_the_tokens_are_named(source: Path, tmp_path: Path) -> None:
    """The tokens are sealed by then: only the keys that are left tell that they are no ordinary pieces."""
    once, broken = tmp_path / "once.gguf", tmp_path / "broken.gguf"
    stamp = annotate(source, once).stamp
    with read_gguf(once) as file:
        for key, options in (("refusal_edge.version", {}), ("refusal_edge.category.0.id", {"preset": "single"})):
            header = gguf_rewrite.rewritten_header(file, {key: None})
            broken.write_bytes(header + once.read_bytes()[file.data_offset :])
            assert annotate(broken, tmp_path / "out.gguf", force=True, **options).stamp == stamp
    with pytest.raises(MetadataError, match=r"id is missing.*name the tokens with --preset or --token"):
        annotate(broken, tmp_path / "out.gguf", force=True)


def test_other_roles_replace_those_of_before(source: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    annotate(source, once, thresholds={"refuse": 0.5})
    report = annotate(once, twice, tokens=[f"respond={REFUSE}", f"yes:Yes={RESPOND}"])
    assert [(t.slug, t.id) for t in report.control] == [("yes", RESPOND), ("respond", REFUSE)]
    assert report.stamp.categories[0].threshold == "model"
    assert Stamp.from_kv(kv(twice)) == report.stamp


def test_a_vocabulary_that_cannot_be_sealed_gets_control_tokens(tmp_path: Path) -> None:
    """WordPiece matches whole words: there is no spelling out of reach."""
    source = other_tools_file(tmp_path / "in.gguf", arch="bert", model="bert")
    report = annotate(source, tmp_path / "out.gguf")
    assert report.stamp.token_type == "control"
    assert "cannot be sealed" in report.warnings[0]
    assert kv(tmp_path / "out.gguf")["tokenizer.ggml.token_type"][REFUSE:] == [3, 3]


def test_a_template_that_llama_cpp_python_cannot_read_is_said(source: Path, tmp_path: Path) -> None:
    with read_gguf(source) as file:
        template = gguf_rewrite.KeyValue("tokenizer.chat_template", "{% if %}", GGUFValueType.STRING)
        header = gguf_rewrite.rewritten_header(file, {template.key: template})
        (tmp_path / "bad.gguf").write_bytes(header + source.read_bytes()[file.data_offset :])
    (warning,) = annotate(tmp_path / "bad.gguf", tmp_path / "out.gguf").warnings
    assert "tokenizer.chat_template: line 1: Expected an expression" in warning


def test_errors_of_the_self_test_name_the_users_file(tmp_path: Path) -> None:
    """Not the vocabulary that was tested, which is in a folder that is gone by then."""
    source = other_tools_file(tmp_path / "in.gguf")
    source.write_bytes(source.read_bytes().replace(b"qwen2", b"qwen9"))
    with pytest.raises(ConversionError, match=f"^{source}: self-test: llama.cpp cannot load the vocabulary: .*qwen9"):
        annotate(source, tmp_path / "out.gguf")


def test_a_dry_run_writes_nothing_and_says_everything(source: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    report = annotate(source, tmp_path / "out.gguf", dry_run=True)
    assert sorted(tmp_path.iterdir()) == before
    changes = {change.key: (change.old, change.new) for change in report.changes}
    assert changes[f"tokenizer.ggml.tokens[{REFUSE}]"] == (" [refuse]", "Ġ[refuse]")
    assert changes[f"tokenizer.ggml.token_type[{REFUSE}]"] == ("USER_DEFINED", "NORMAL")
    assert changes["refusal_edge.respond_token_id"] == (None, RESPOND)


def test_in_place_needs_force(source: Path) -> None:
    with pytest.raises(ConversionError, match="exists; use --force"):
        annotate(source, source)
    annotate(source, source, force=True)
    assert Stamp.from_kv(kv(source)).respond_token_id == RESPOND


@pytest.mark.parametrize("way", ["in the kernel", "by hand", "by hand after the kernel declined"])
def test_bytes_are_copied_in_every_way(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(3).bytes(3_000_001)
    (tmp_path / "a").write_bytes(data)
    if way == "by hand":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif way.startswith("by hand after"):
        monkeypatch.setattr(os, "copy_file_range", _declining, raising=False)
    monkeypatch.setattr(gguf_rewrite, "READ_BYTES", 100_000)
    seen: list[int] = []
    with open(tmp_path / "a", "rb") as a, open(tmp_path / "b", "w+b") as b:
        gguf_rewrite.copy_range(a.fileno(), 1, b.fileno(), 5, 3_000_000, seen.append)
    assert (tmp_path / "b").read_bytes() == bytes(5) + data[1:]
    assert sum(seen) == 3_000_000


def _declining(*_: object) -> int:
    raise OSError(95, "Operation not supported")


def broken(kind: str, folder: Path) -> Path:
    path = other_tools_file(folder / "in.gguf")
    data = path.read_bytes()
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "truncated":
        path.write_bytes(data[:-40])
    elif kind == "no vocabulary":
        path.write_bytes(gguf([pair("general.architecture", STRING, "llama")], [tensor("t", (8,))], data=bytes(32)))
    elif kind == "split":
        path.write_bytes(gguf([pair("split.count", UINT32, 3), array("tokenizer.ggml.tokens", STRING, ["a"])]))
    elif kind == "no control tokens":
        path.write_bytes(gguf([array("tokenizer.ggml.tokens", STRING, ["a"])]))
    elif kind == "broken keys":
        tokens = array("tokenizer.ggml.tokens", STRING, ["a", "b"])
        path.write_bytes(gguf([tokens, pair("refusal_edge.version", UINT32, 7)]))
    return path


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("truncated", {}, ConversionError, "download or convert it again"),
        ("no vocabulary", {}, ConversionError, "has no vocabulary"),
        ("split", {}, ConversionError, "llama-gguf-split --merge"),
        ("no control tokens", {}, ConversionError, "no control tokens found"),
        ("broken keys", {}, MetadataError, r"in\.gguf: refusal_edge\.version: expected 1, got 7"),
        ("pipe", {}, ConversionError, r"in\.gguf is not a regular file"),
        ("", {"thresholds": {"safety": 0.5}}, ConversionError, "unknown category 'safety': this file has refuse"),
        ("", {"thresholds": {"refuse": 1.5}}, InvalidPolicyError, r"in \[0, 1\]"),
        ("", {"tokens": ["respond=99"]}, ConversionError, "ordinary piece"),
        ("", {"tokens": [f"respond={EOS}"]}, ConversionError, "is the eos token of this vocabulary"),
        ("", {"token_type": "loose"}, ConversionError, "expected one of sealed, control, user"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    kind: str, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source, out = broken(kind, tmp_path), tmp_path / "out.gguf"
    out.write_text("precious")
    with pytest.raises(error, match=message) as caught:
        annotate(source, out, force=True, **options)
    assert "\n" not in str(caught.value)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


def test_a_full_disk_leaves_the_target_alone(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    out = tmp_path / "out.gguf"
    out.write_text("precious")
    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    monkeypatch.setattr(gguf_rewrite, "_by_hand", full)
    with pytest.raises(OSError, match="No space left") as error:
        annotate(source, out, force=True)
    assert error.value.filename == f"{out}.refusal-edge.part"
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


def test_kill_in_the_middle_leaves_the_target_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    script = (
        "import sys, time\n"
        "from refusal_edge.convert.annotate import annotate\n"
        "def stop(written, total):\n"
        "    print('writing', flush=True); time.sleep(60)\n"
        "annotate(sys.argv[1], sys.argv[2], force=True, progress=stop)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(source), str(out)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(signal.SIGKILL)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "out.gguf", "out.gguf.refusal-edge.part"]
    annotate(source, out, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert main(["annotate", str(source), "-o", str(out), "--threshold", "refuse=0.3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "would write" in shown
    assert "refusal_edge.category.0.threshold" in shown
    assert not out.exists()

    assert main(["annotate", str(source), "-o", str(out), "--threshold", "refuse=0.3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["token_type"], report["reachable"]) == ("sealed", "never")
    assert Stamp.from_kv(kv(out)).policy.thresholds == {"refuse": 0.3}
    assert hashlib.sha256(source.read_bytes()).hexdigest() == digest

    for arguments, message in (
        ([], "exists; use --force"),
        (["--force", "--threshold", "refuse=2"], "in [0, 1]"),
        (["--force", "--threshold", "refuse"], "expected SLUG=VALUE"),
        (["--force", "--token", "respond"], "expected ROLE=ID"),
    ):
        assert main(["annotate", str(source), "-o", str(out), *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
