"""The conversion as a whole: what it says about bad input, and that it leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import CONTROL_TEXTS, write_checkpoint, write_json, write_safetensors

from refusal_edge.cli import main
from refusal_edge.convert import convert
from refusal_edge.errors import ConversionError, FormatError
from refusal_edge.gguf_file import read_gguf
from refusal_edge.keys import Stamp


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    values = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in values.items() if value is not None})


def edit_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def cut(name: str, n_bytes: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - n_bytes)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def only_pickle(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def drop_rows(folder: Path) -> None:
    """resize_token_embeddings was forgotten: three tokens have no row."""
    for path in folder.glob("model*"):
        path.unlink()
    donor = write_checkpoint(folder.parent / "donor", tokens=CONTROL_TEXTS[:3])
    for path in donor.glob("model*"):
        shutil.copy(path, folder)


def untie_rows(folder: Path) -> None:
    """The head was not resized with the embedding."""
    donor = write_checkpoint(folder.parent / "donor", shards=1, tokens=CONTROL_TEXTS[:3])
    from refusal_edge.convert.safetensors import read_header

    shutil.rmtree(folder)
    shutil.copytree(donor, folder)
    header = read_header(folder / "model.safetensors")
    arrays = [
        (name, np.zeros((tensor.shape[0] + (3 if name == "lm_head.weight" else 0), *tensor.shape[1:]), np.float32))
        for name, tensor in header.items()
    ]
    write_safetensors(folder / "model.safetensors", arrays)


def add_tensor(name: str, shape: tuple[int, ...] = (4, 4)) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors.index.json").unlink()
        for path in folder.glob("model-*"):
            path.unlink()
        donor = write_checkpoint(folder.parent / "donor", shards=1, dtype="F32")
        from refusal_edge.convert.safetensors import read_header

        header = read_header(donor / "model.safetensors")
        arrays = [(key, np.zeros(tensor.shape, np.float32)) for key, tensor in header.items() if key != name]
        write_safetensors(folder / "model.safetensors", [*arrays, (name, np.zeros(shape, np.float32))])

    return change


SHARD = "model-00002-of-00002.safetensors"
BAD: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "no folder": (shutil.rmtree, {}, "is not there; SRC must be the folder"),
    "no config": (remove("config.json"), {}, "has no config.json"),
    "missing shard": (remove(SHARD), {}, f"1 of 2 shards are missing ('{SHARD}')"),
    "truncated shard": (cut(SHARD, 100), {}, "is truncated"),
    "shard cut in its header": (lambda folder: os.truncate(folder / SHARD, 50), {}, "claims a header"),
    "tokens without rows": (drop_rows, {}, "[respond]"),
    "head not resized": (untie_rows, {}, "resize both"),
    "no control tokens": (lambda folder: rewrite(folder, tokens=(" [a]", " [b]")), {}, "no control tokens found"),
    "two roles": (lambda folder: None, {"tokens": ["respond=272", "safety=272"]}, "two roles"),
    "unknown token": (lambda folder: None, {"tokens": ["respond=[nope]"]}, "no added token has this text"),
    "unknown preset": (lambda folder: None, {"preset": "seven"}, "--preset"),
    "unknown token type": (lambda folder: None, {"token_type": "secret"}, "--token-type"),
    "unknown architecture": (
        edit_config(architectures=["FalconForCausalLM"]),
        {},
        "'FalconForCausalLM' is not supported",
    ),
    "mixture by name": (edit_config(architectures=["MixtralForCausalLM"]), {}, "mixtures of experts are out of scope"),
    "no architecture": (edit_config(architectures=None), {}, "architectures must be a list of one name"),
    "mixture of experts": (edit_config(num_local_experts=8), {}, "mixture of experts"),
    "quantized": (edit_config(quantization_config={"quant_method": "gptq"}), {}, "quantized"),
    "vision": (edit_config(vision_config={"hidden_size": 8}), {}, "multimodal"),
    "remote code": (edit_config(auto_map={"AutoModel": "x.Y"}), {}, "auto_map"),
    "pickle only": (only_pickle, {}, "only pickle weights"),
    "unknown weight": (add_tensor("model.layers.0.mlp.experts.0.w1.weight"), {}, "1 weights are not part of"),
    "missing weight": (edit_config(num_hidden_layers=3), {}, "weights are missing, first model.layers.2"),
    "wrong shape": (edit_config(intermediate_size=64), {}, "has shape [128, 64], config.json implies [64, 64]"),
    "no head": (lambda folder: rewrite(folder, tied=True, config={"tie_word_embeddings": False}), {}, "lm_head.weight"),
    "wrong activation": (edit_config(hidden_act="gelu"), {}, "hidden_act 'gelu' is not implemented"),
    "unknown rope": (edit_config(rope_scaling={"rope_type": "spiral"}), {}, "rope scaling 'spiral'"),
    **{
        f"{place} {expected}": (edit_config(**changes), {}, f"config.json: {place} must be {expected}")
        for place, expected, changes in (
            ("rope_theta", "a number above 0, got 0", {"rope_theta": 0}),
            ("rope_theta", "a number above 0, got -1.0", {"rope_theta": -1.0}),
            ("rope_scaling", "an object, got 4", {"rope_scaling": 4}),
            ("rope_scaling.rope_type", "a string, got 3", {"rope_scaling": {"rope_type": 3}}),
            (
                "rope_scaling.factor",
                "a number above 0, got 0",
                {"rope_scaling": {"type": "linear", "factor": 0}},
            ),
            ("rope_scaling.factor", "a number above 0, got None", {"rope_scaling": {"type": "linear"}}),
            (
                "rope_parameters.rope_theta",
                "a number above 0, got -5",
                {"rope_parameters": {"rope_type": "default", "rope_theta": -5}},
            ),
            (
                "rope_parameters.beta_fast",
                "a number above 0, got 0",
                {"rope_parameters": {"rope_type": "yarn", "factor": 2, "beta_fast": 0}},
            ),
            (
                "rope_parameters.low_freq_factor",
                "below high_freq_factor (2), got 3",
                {"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 3, "high_freq_factor": 2}},
            ),
            (
                "max_position_embeddings",
                "a number above 0, got 0",
                {"rope_parameters": {"rope_type": "llama3"}, "max_position_embeddings": 0},
            ),
            ("partial_rotary_factor", "a number in (0, 1], got 1.5", {"partial_rotary_factor": 1.5}),
        )
    },
    "negative epsilon": (
        edit_config(rms_norm_eps=-1e-5),
        {},
        "rms_norm_eps must be a number of at least 0, got -1e-05",
    ),
    "a softcap of zero": (
        lambda folder: rewrite(folder, arch="gemma2", vocab="spm", tied=True, config={"attn_logit_softcapping": 0}),
        {},
        "attn_logit_softcapping must be a number above 0, got 0",
    ),
    "logits divided by zero": (
        lambda folder: rewrite(folder, arch="granite", config={"logits_scaling": 0.0}),
        {},
        "logits_scaling must be a number above 0, got 0.0",
    ),
    "a factor of zero among many": (
        lambda folder: rewrite(
            folder,
            arch="phi3",
            vocab="spm",
            config={"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [0.0] * 8}},
        ),
        {},
        "rope_scaling.long_factor must be a list of 8 numbers above 0, got [0.0,",
    ),
    "nothing to rotate": (
        lambda folder: rewrite(folder, arch="phi3", vocab="spm", config={"partial_rotary_factor": 0.05}),
        {},
        "partial_rotary_factor must be an even part of 16 values, got 0.05",
    ),
    "another base of local layers": (
        lambda folder: rewrite(folder, arch="gemma3", vocab="spm", tied=True, config={"rope_local_base_freq": 0}),
        {},
        "rope_local_base_freq must be a number above 0, got 0",
    ),
    "too many layers": (edit_config(num_hidden_layers=513), {}, "num_hidden_layers must be an integer in [1, 512]"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), {}, "not valid JSON"),
    "key twice": (lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'), {}, "'a' appears twice"),
    "a GGUF file": (lambda folder: None, {"src": "some.gguf"}, "annotate"),
    "an adapter": (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), {}, "--adapter"),
    "a scalar": (add_tensor("model.scale", ()), {}, "1 weights are not part of"),
    "no threads": (lambda folder: None, {"threads": 0}, "--threads must be in [1, 64], got 0"),
    "too many threads": (lambda folder: None, {"threads": 10**12}, "--threads must be in [1, 64], got 1000000000000"),
    "two ways to quantize": (
        lambda folder: None,
        {"outtype": "f32", "quantize": "Q4_K_M"},
        "--outtype 'f32' and --quantize 'Q4_K_M' exclude each other",
    ),
    "unprintable name": (lambda folder: None, {"name": "a\nb"}, "--name must be printable"),
    "bytes as name": (lambda folder: None, {"name": os.fsdecode(b"\xff")}, "--name must be printable"),
    "half a character": (
        lambda folder: (folder / "config.json").write_text('{"_name_or_path": "\\ud800"}'),
        {},
        "surrogate pair",
    ),
    "unknown pre-tokenizer": (
        lambda folder: None,
        {"pre": "nope"},
        "model with --pre 'nope': self-test: llama.cpp cannot",
    ),
    "no merges": (
        lambda folder: edit(
            folder / "tokenizer.json",
            model=json.loads((folder / "tokenizer.json").read_text())["model"] | {"merges": []},
        ),
        {},
        "tokenizer.json: model.merges is empty, which llama.cpp does not load",
    ),
    "broken template": (
        lambda folder: edit(folder / "tokenizer_config.json", chat_template="a\n{% for %}"),
        {},
        "model: tokenizer.chat_template: line 2: Expected an expression",
    ),
    "broken template of another name": (
        lambda folder: edit(
            folder / "tokenizer_config.json",
            chat_template=[{"name": "default", "template": "x"}, {"name": "tools", "template": "{{ x"}],
        ),
        {},
        "model: tokenizer.chat_template.tools: line 1: unexpected end of template",
    ),
    "no adapter there": (lambda folder: None, {"adapter": "nowhere"}, "adapter_config.json"),
}


def rewrite(folder: Path, **options: Any) -> None:
    shutil.rmtree(folder)
    write_checkpoint(folder, **options)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    change, options, message = BAD[name]
    change(folder)
    source = tmp_path / options.pop("src", "model") if "src" in options else folder
    if source.suffix == ".gguf":
        source.write_bytes(b"GGUF")
    options = {key: str(tmp_path / value) if key == "adapter" else value for key, value in options.items()}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConversionError) as error:
        convert(source, tmp_path / "out.gguf", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("outtype", ["auto", "f32", "f16", "bf16", "q8_0", "q4_0"])
def test_nan_weights_leave_nothing(outtype: str, folder: Path, tmp_path: Path) -> None:
    weight = np.zeros((64, 64), np.float32)
    weight[3, 3] = np.nan
    add_tensor("model.layers.1.self_attn.o_proj.weight", (64, 64))(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-64 * 64 * 4 :] = weight.tobytes()
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ConversionError, match=r"blk\.1\.attn_output\.weight: a weight is NaN or infinite"):
        convert(folder, tmp_path / "out.gguf", outtype=outtype)
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_shrinks_while_it_is_read_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def shrink(written: int, total: int) -> None:
        os.truncate(folder / SHARD, 3000)

    with pytest.raises(FormatError, match="while it was being read"):
        convert(folder, tmp_path / "out.gguf", progress=shrink)
    assert not list(tmp_path.glob("out*"))


def test_the_template_of_smollm3_is_fine(folder: Path, tmp_path: Path) -> None:
    """Jinja knows no `generation` and no `break`, the loaders of chat templates do."""
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    edit(folder / "tokenizer_config.json", chat_template=template)
    assert convert(folder, tmp_path / "out.gguf", dry_run=True).stamp.reachable == "never"


def test_a_disk_that_cannot_read_names_the_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        convert(folder, tmp_path / "out.gguf")
    assert Path(error.value.filename).parent == folder
    assert not list(tmp_path.glob("out*"))


# The output file


def test_existing_output_needs_force(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(ConversionError, match="use --force"):
        convert(folder, out)
    assert out.read_bytes() == b"precious"
    convert(folder, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(("out", "message"), [("sub/out.gguf", "does not exist"), (".", "is a folder")])
def test_output_must_be_a_file_in_a_folder(folder: Path, tmp_path: Path, out: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / out)


def test_dry_run_writes_nothing_and_knows_the_size(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    planned = convert(folder, tmp_path / "out.gguf", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    written = convert(folder, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").stat().st_size == planned.n_bytes == written.n_bytes


def test_too_little_space_is_seen_before_writing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConversionError, match=r"0 MB free; free some space"):
        convert(folder, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("out*"))


def test_the_same_input_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    for threads in (1, 4):
        convert(folder, tmp_path / f"{threads}.gguf", threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "4.gguf").read_bytes()


def test_the_file_carries_its_policy(folder: Path, tmp_path: Path) -> None:
    report = convert(folder, tmp_path / "out.gguf", preset="coconot-5", name="My model")
    with read_gguf(tmp_path / "out.gguf") as file:
        assert Stamp.from_kv(file.kv, file.n_vocab()) == report.stamp
        assert file.kv["general.name"] == "My model"
    assert report.stamp.reachable == "never"
    assert [category.id for category in report.stamp.categories] == [
        *("humanizing", "incomplete", "indeterminate", "safety", "unsupported"),
    ]


def test_a_name_with_phi3_does_not_break_llama_cpp(folder: Path, tmp_path: Path) -> None:
    """llama.cpp looks up "</s>" in every vocabulary of a model whose name has "phi3" in it, and dies without."""
    from llama_cpp import Llama

    convert(folder, tmp_path / "out.gguf", name="not-a-Phi-3 but phi3-like")
    llm = Llama(str(tmp_path / "out.gguf"), vocab_only=True, verbose=False)
    assert llm.metadata["general.name"] == "not-a-phi 3 but phi 3-like"
    llm.close()


# Warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"vocab_size": 999}}, "config.json says 999 tokens, the weights have rows for 273"),
        ({"scale": 0.0}, "is zero: it was never trained"),
        ({"arch": "mistral", "config": {"sliding_window": 16}}, "sliding window of 16 tokens"),
        ({"config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}}, "'dynamic' is left out"),
        (
            {"tokens": ("[refuse]", "[respond]", "<gap>", "[far]")},
            "look like control tokens but have no role: 270 '[far]'",
        ),
        ({"arch": "phi3", "vocab": "spm", "config": {"auto_map": {"AutoModelForCausalLM": "m.P"}}}, "auto_map"),
    ],
)
def test_warns(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    report = convert(write_checkpoint(tmp_path / "model", **options), tmp_path / "out.gguf", dry_run=True)
    assert any(message in warning for warning in report.warnings), report.warnings


@pytest.mark.parametrize(
    "card", ["---\nname: [1, 2\n---\n", "---\nname: 3\n---\n", "---\nlicense: {a: b}\n---\n", "\xff"]
)
def test_a_broken_model_card_is_only_a_warning(folder: Path, tmp_path: Path, card: str) -> None:
    (folder / "README.md").write_text(card, encoding="latin-1")
    report = convert(folder, tmp_path / "out.gguf")
    assert any("front matter ignored" in warning for warning in report.warnings)


def test_sampling_values_of_the_wrong_kind_are_left_out(folder: Path, tmp_path: Path) -> None:
    write_json(folder / "generation_config.json", {"top_k": 10**12, "top_p": "high", "temperature": 0.5, "min_p": True})
    convert(folder, tmp_path / "out.gguf")
    with read_gguf(tmp_path / "out.gguf") as file:
        sampling = {key: value for key, value in file.kv.items() if key.startswith("general.sampling.")}
    assert sampling == {"general.sampling.temp": 0.5}


# A process that dies, a disk that is full

KILLED = """
import os, signal, sys
from refusal_edge.convert import convert
convert(sys.argv[1], sys.argv[2], force=True, progress=lambda written, total: os.kill(os.getpid(), signal.SIGKILL))
"""
FILLED = """
import os, sys
from refusal_edge.cli import main
os.chdir(sys.argv[2])
import refusal_edge.convert.conversion as conversion
original = conversion.write_tensors
def write_tensors(*args, **kwargs):
    with open("filler", "wb") as file:  # somebody else takes the space that was free a moment ago
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    original(*args, **kwargs)
conversion.write_tensors = write_tensors
sys.exit(main(["convert", sys.argv[1], "-o", "out.gguf", "--force"]))
"""


def test_a_killed_process_leaves_the_target_and_one_part_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "out.gguf"
    out.parent.mkdir()
    out.write_bytes(b"precious")
    child = subprocess.run([sys.executable, "-c", KILLED, folder, out], check=False)
    assert child.returncode == -signal.SIGKILL
    assert out.read_bytes() == b"precious"
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.gguf", "out.gguf.refusal-edge.part"]
    convert(folder, out, force=True)
    assert [path.name for path in out.parent.iterdir()] == ["out.gguf"]
    assert out.read_bytes()[:4] == b"GGUF"


def test_two_processes_do_not_write_one_file(folder: Path, tmp_path: Path) -> None:
    def convert_again(written: int, total: int) -> None:
        with pytest.raises(ConversionError, match="being written by another process"):
            convert(folder, tmp_path / "out.gguf")

    convert(folder, tmp_path / "out.gguf", progress=convert_again)


def test_a_size_limit_leaves_the_target(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    child = run_cli([str(folder), "-o", str(out), "--force"], preexec_fn=limit)
    assert child.returncode == 2
    assert f"{out}.refusal-edge.part: File too large" in only_line(child.stderr)
    assert out.read_bytes() == b"precious"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a small file system in a namespace of its own")
def test_a_disk_that_fills_up_leaves_the_target(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=2m none {disk} && printf precious > {disk}/out.gguf && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", f"{script}", "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system here")
    inside = f"{sys.executable} -c '{FILLED}' {folder} {disk}; echo $? $(cat {disk}/out.gguf) $(ls {disk})"
    child = subprocess.run([*command, "sh", "-c", inside], capture_output=True, text=True, check=False)
    assert child.stdout.split() == ["2", "precious", "filler", "out.gguf"], child.stderr
    assert "out.gguf.refusal-edge.part: No space left on device" in only_line(child.stderr)


# The command line


def run_cli(args: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    code = "import sys; from refusal_edge.cli import main; sys.exit(main(['convert', *sys.argv[1:]]))"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, **options)


def only_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert text.startswith("refusal-edge: error: ")
    return text


def test_cli_prints_json_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    child = run_cli([str(folder), "-o", str(tmp_path / "out.gguf"), "--json", "--outtype", "q8_0"])
    assert child.returncode == 0
    assert child.stderr == ""
    report = json.loads(child.stdout)
    assert report["file_type"] == "Q8_0"
    assert report["reachable"] == "never"
    assert [token["text"] for token in report["control_tokens"]] == list(CONTROL_TEXTS)
    assert report["n_bytes"] == (tmp_path / "out.gguf").stat().st_size


def test_cli_says_what_it_wrote(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder), "-o", str(tmp_path / "out.gguf")]) == 0
    text = capsys.readouterr().out
    assert "llama BF16" in text
    assert "' [respond]'" in text
    assert "no text becomes a control token" in text


def test_cli_reports_bad_input_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--outtype", "int3"]) == 2
    assert "--outtype 'int3': allowed are f32" in only_line(capsys.readouterr().err)
