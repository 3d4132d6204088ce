"""Files and context sizes that llama.cpp would abort, hang or say nothing on: one line instead."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Kind
from helpers import BENIGN, HARMFUL, raw_prompt, user
from toy_model import WIDTH

from refusal_edge import Llama, loading
from refusal_edge.convert import convert
from refusal_edge.convert.gguf_rewrite import rewritten_header
from refusal_edge.convert.gguf_writer import KeyValue
from refusal_edge.errors import FormatError, InvalidRequestError
from refusal_edge.gguf_file import read_gguf
from refusal_edge.loading import check_loadable

sys.path.append(str(Path(__file__).parents[1] / "convert"))
import real_vocabularies
from cases import CASES
from checkpoints import write_checkpoint

Change = Callable[..., Path]


def with_keys(source: Path, out: Path, changes: dict[str, Any]) -> Path:
    """A copy of a GGUF file with keys changed, or removed where the value is None."""
    pairs = {key: KeyValue(key, *value) if value else None for key, value in changes.items()}
    with read_gguf(source) as file:
        out.write_bytes(rewritten_header(file, pairs) + source.read_bytes()[file.data_offset :])
    return out


@pytest.fixture
def changed(toy_path: Path, tmp_path: Path) -> Change:
    """The toy with one key changed, or removed where there is no value."""
    return lambda key, *value: with_keys(toy_path, tmp_path / "changed.gguf", {key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", (600, Kind.UINT32), r"llama\.block_count.*\[0, 512\], got 600"),
        ("llama.block_count", (10**9, Kind.UINT32), r"llama\.block_count"),
        ("llama.attention.layer_norm_rms_epsilon", (float("nan"), Kind.FLOAT32), "finite number, got nan"),
        ("tokenizer.ggml.tokens", (["a"] * 318, Kind.ARRAY, Kind.STRING), "expected different tokens, got 'a' twice"),
        ("general.name", (b"\xff\xfe", Kind.STRING), "key 'general.name': expected UTF-8 text"),
    ],
)
def test_hostile_files_are_one_line(changed: Change, key: str, value: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Llama(changed(key, *value), n_ctx=64, verbose=False)


# ---- values that llama.cpp asserts on: in processes of their own, which it would end ---------------------------------

LOAD_EACH = """
import os, sys
import refusal_edge.llama
from refusal_edge import Llama
from refusal_edge.errors import FormatError

for path in sys.argv[1:]:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        Llama(path, n_ctx=64, verbose=False).decide([{"role": "user", "content": "hi"}])
        print("loaded, exit status", end=" ", flush=True)
    except FormatError as error:
        print(error, end="; exit status ", flush=True)
    os._exit(0)
"""


def u32(value: int) -> tuple[int, Kind]:
    return value, Kind.UINT32


def u32s(*values: int) -> tuple[list[int], Kind, Kind]:
    return list(values), Kind.ARRAY, Kind.UINT32


def text(value: str) -> tuple[str, Kind]:
    return value, Kind.STRING


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("toy", {"llama.block_count": u32(0)}, "block_count': expected a number in [1, 512], got 0"),
    ("toy", {"llama.nextn_predict_layers": u32(3)}, "nextn_predict_layers': expected a number in [0, 2], got 3"),
    ("toy", {"llama.context_length": u32(2**31 - 1)}, "context_length': expected a number in [0, 33554432]"),
    ("toy", {"llama.context_length": u32(2**31)}, "context_length': expected a number in [0, 33554432]"),
    ("toy", {"llama.attention.layer_norm_rms_epsilon": (-1.0, Kind.FLOAT32)}, "expected a number >= 0, got -1.0"),
    ("toy", {"llama.rope.scaling.type": text("x")}, "expected one of none, linear, yarn, longrope, got 'x'"),
    ("toy", {"llama.expert_count": u32(8)}, "expert_used_count': expected a number in [1, 8] (expert_count), got 0"),
    ("toy", {"llama.expert_count": u32(1025)}, "expert_count': expected a number in [0, 1024], got 1025"),
    ("toy", {"llama.expert_count": u32(8), "llama.expert_used_count": u32(9)}, "[1, 8] (expert_count), got 9"),
    ("toy", {"llama.expert_used_count": u32(1)}, "expected a number in [0, 0] (expert_count), got 1"),
    ("toy", {"llama.expert_group_count": u32(1)}, "expected a divisor of 0 (expert_count) below it, got 1"),
    (
        "toy",
        {"llama.expert_count": u32(8), "llama.expert_used_count": u32(2), "llama.expert_group_count": u32(4)},
        "expert_group_used_count': expected a number in [1, 3], got None",
    ),
    ("toy", {"llama.attention.head_count_kv": text("x")}, "head_count_kv': expected a number >= 1, the same for"),
    ("toy", {"tokenizer.ggml.model": text("none")}, "expected one of gpt2, llama, t5, "),
    ("toy", {"tokenizer.ggml.model": text("no_vocab")}, "expected one of gpt2, llama, t5, "),
    ("toy", {"tokenizer.ggml.model": text("rwkv")}, "expected one of gpt2, llama, t5, "),
    ("toy", {"tokenizer.ggml.model": text("llama")}, "expected a token for each byte, <0x00> to <0xFF>, got none for"),
    ("qwen3", {"qwen3.rope.dimension_count": u32(8)}, "dimension_count': expected 32, the length of keys, got 8"),
    ("olmo2", {"olmo2.attention.head_count": u32(0)}, "head_count': expected a number >= 1, the same for each layer"),
    ("olmo2", {"olmo2.attention.head_count": None}, "head_count': expected a number >= 1, the same for each layer"),
    ("olmo2", {"olmo2.attention.head_count": u32s(0, 4)}, "head_count': expected a number >= 1, the same for each"),
    ("llama", {"llama.attention.head_count_kv": u32s(2, 1)}, "count_kv': expected a number >= 1, the same for each"),
    ("llama", {"llama.expert_used_count": ([True, True], Kind.ARRAY, Kind.BOOL)}, "[0, 0] (expert_count), got 1"),
    ("qwen2", {"qwen2.attention.head_count": u32(64)}, "tensor 'blk.0.attn_q.weight': expected 64 heads of 16 rows"),
    ("phi3", {"phi3.rope.dimension_count": u32(0)}, "dimension_count': expected an even number in [2, 16], got 0"),
    ("phi3", {"phi3.rope.dimension_count": u32(7)}, "dimension_count': expected an even number in [2, 16], got 7"),
    ("phi3", {"phi3.attention.key_length": u32(8)}, "key_length': expected 16, the length of values, got 8"),
    ("gemma3", {"gemma3.rope.dimension_count_swa": u32(3)}, "count_swa': expected an even number in [2, 16], got 3"),
    ("gemma3", {"gemma3.attention.sliding_window": u32(2**31 - 1)}, "expected a number in [0, 33554432]"),
    ("gemma3", {"gemma3.attention.sliding_window_pattern": u32(1)}, "expected 0 or a number >= 2"),
    ("gemma3", {"tokenizer.ggml.model": text("bert")}, "expected one of gpt2, llama, t5, "),
]


@pytest.fixture(scope="module")
def of_family(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small file of a model family that was converted by us; "toy" is the toy."""

    @cache
    def convert_family(name: str) -> Path:
        if name == "toy":
            return toy_path
        folder = tmp_path_factory.mktemp(name)
        convert(write_checkpoint(folder / "checkpoint", **CASES[name].options), folder / "out.gguf", outtype="f16")
        return folder / "out.gguf"

    return convert_family


@pytest.fixture(scope="module")
def verdicts(of_family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What loading each of `HOSTILE` ended in."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = [with_keys(of_family(name), folder / f"{i}.gguf", keys) for i, (name, keys, _) in enumerate(HOSTILE)]
    run = subprocess.run([sys.executable, "-c", LOAD_EACH, *paths], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize("i", range(len(HOSTILE)), ids=[str(keys) for _, keys, _ in HOSTILE])
def test_values_that_would_end_the_process(verdicts: list[str], i: int) -> None:
    message = HOSTILE[i][2]
    assert message in verdicts[i]
    assert verdicts[i].endswith("; exit status 0")


def test_tensors_that_lie_where_llama_cpp_does_not_take_them(toy_path: Path, tmp_path: Path) -> None:
    def data_offset(path: Path) -> int:
        with read_gguf(path) as file:
            return file.data_offset

    names = {tmp_path / f"{n}.gguf": text("x" * n) for n in (8, 16)}  # one of them at least on no multiple of 32 bytes
    for path, name in names.items():
        with_keys(toy_path, path, {"general.alignment": u32(8), "general.name": name})
    misaligned = [path for path in names if data_offset(path) % 32]
    assert misaligned
    for path in misaligned:
        with pytest.raises(FormatError, match=r"general\.alignment': expected a multiple of 32"):
            check_loadable(str(path), {})


def test_a_name_that_a_nameless_token_would_get(toy_path: Path, tmp_path: Path) -> None:
    with read_gguf(toy_path) as file:
        tokens = [token.decode() for token in file.kv["tokenizer.ggml.tokens"]]
    tokens[3], tokens[4] = "", "[EMPTY_3]"
    keys = {"tokenizer.ggml.tokens": (tokens, Kind.ARRAY, Kind.STRING)}
    with pytest.raises(FormatError, match=r"expected different tokens, got '\[EMPTY_3\]' twice"):
        Llama(with_keys(toy_path, tmp_path / "out.gguf", keys), n_ctx=64, verbose=False)


@pytest.mark.parametrize("name", sorted(CASES))
def test_sound_files_of_every_family_pass(of_family: Callable[[str], Path], name: str) -> None:
    check_loadable(str(of_family(name)), {})


@pytest.mark.parametrize(
    "keys",
    [
        {"llama.expert_count": u32(8), "llama.expert_used_count": u32(2)},
        {"llama.expert_count": u32(8), "llama.expert_used_count": u32s(2, 1)},
        {"llama.expert_count": u32(256), "llama.expert_used_count": u32(8), "llama.expert_group_count": u32(1)},
        {"llama.attention.head_count_kv": u32s(4, 4)},
        {"llama.rope.dimension_count": None},
        {"llama.rope.scaling.type": text("yarn"), "llama.context_length": u32(10 * 2**20)},
        {"general.architecture": text("made-up"), "made-up.rope.dimension_count": u32(7)},
        {"tokenizer.ggml.padding_token_id": u32(2**32 - 1)},
        {"llama.attention.sliding_window": u32(2**32 - 1)},
    ],
    ids=str,
)
def test_values_that_other_tools_write_pass(toy_path: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    check_loadable(str(with_keys(toy_path, tmp_path / "out.gguf", keys)), {})


def test_a_folder_is_not_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a folder, expected a GGUF file"):
        Llama(tmp_path, verbose=False)


@pytest.mark.parametrize("n_ctx", [-5, 10**12, 10**400, 1.5, "x", None, True])
def test_n_ctx_out_of_range(toy_path: Path, n_ctx: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"n_ctx: expected an integer in \[0, 2147483647\]"):
        Llama(toy_path, n_ctx=n_ctx, verbose=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_batch": -1}, r"n_batch: expected an integer in \[1, 2147483647\], got -1"),
        ({"n_batch": 0}, "n_batch: expected an integer"),
        ({"n_batch": None}, "n_batch: expected an integer"),
        ({"n_threads": 100_000}, r"n_threads: expected an integer in \[-1, 512\] or None, got 100000"),
        ({"n_threads_batch": 513}, "n_threads_batch: expected an integer"),
        ({"type_k": 99}, r"type_k: expected one of 0 \(F32\), 1 \(F16\), .*, or None, got 99"),
        ({"type_k": 24}, "type_k: expected one of"),
        ({"type_k": "q8_0"}, "type_k: expected one of .* got 'q8_0'"),
        ({"type_k": 8, "flash_attn": True}, "type_k: expected a type whose blocks fill a row of 16, got Q8_0"),
        ({"type_v": -1}, "type_v: expected one of"),
        ({"type_v": 8}, "type_v: Q8_0 needs flash_attn=True"),
        ({"lora_path": "/nonexistent"}, "lora_path: expected a GGUF file, got '/nonexistent'"),
        ({"lora_path": 3}, "lora_path: expected a GGUF file, got 3"),
        ({"kv_overrides": [1]}, "kv_overrides: expected an object"),
    ],
)
def test_arguments_that_llama_cpp_does_not_check(toy_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        check_loadable(str(toy_path), arguments)


@pytest.mark.parametrize("type_k", [0, 1, 8, 30])
def test_cache_types(toy_path: Path, type_k: int) -> None:
    llm = Llama(toy_path, n_ctx=128, type_k=type_k, n_batch=16, n_threads=None, verbose=False)
    assert llm.decide(user(BENIGN)).outcome == "respond"
    llm.close()


def test_overrides_are_checked_as_the_file_is(toy_path: Path) -> None:
    for overrides in ({"llama.block_count": 0}, {"llama.block_count": 600}, {"tokenizer.ggml.model": "none"}):
        with pytest.raises(FormatError, match=next(iter(overrides))):
            check_loadable(str(toy_path), {"kv_overrides": overrides})
    check_loadable(str(toy_path), {"kv_overrides": {"llama.block_count": False}})  # llama.cpp ignores another type
    llm = Llama(toy_path, n_ctx=64, kv_overrides={"tokenizer.ggml.add_bos_token": False}, verbose=False)
    assert llm.tokenize(b"a") == llm.tokenize(b"a", add_bos=False)
    llm.close()


def test_a_batch_that_no_machine_has_the_memory_for(toy_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="n_ctx, n_batch: no memory for as many tokens"):
        Llama(toy_path, n_ctx=64, n_batch=2**31 - 1, verbose=False)


# ---- LoRA adapters ---------------------------------------------------------------------------------------------------


def adapter(path: Path, *, width: int = WIDTH, **keys: Any) -> Path:
    """A LoRA adapter of rank 2 for one matrix of the toy."""
    writer = gguf.GGUFWriter(path, keys.pop("arch", "llama"))
    writer.add_string("general.type", keys.pop("type", "adapter"))
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    rng = np.random.default_rng(1)
    for name, shape in (("lora_a", (2, width)), ("lora_b", (WIDTH, 2))):
        writer.add_tensor(f"blk.0.attn_output.weight.{name}", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_lora_adapter(llm: Llama, tmp_path: Path) -> None:
    adapted = Llama(llm.model_path, n_ctx=128, lora_path=str(adapter(tmp_path / "lora.gguf")), verbose=False)
    plain, changed = llm.decide(user(BENIGN)), adapted.decide(user(BENIGN))
    assert changed.scores != pytest.approx(plain.scores, abs=1e-3)
    assert adapted.decide_batch([user(BENIGN)])[0].scores == pytest.approx(changed.scores, abs=1e-3)
    copy = pickle.loads(pickle.dumps(adapted))
    assert copy.decide(user(BENIGN)).scores == pytest.approx(changed.scores, abs=1e-5)
    copy.close()
    adapted.close()


def test_lora_adapters_that_llama_cpp_cannot_use(toy_path: Path, tmp_path: Path) -> None:
    bad = {
        "key 'general.type': expected 'adapter', as in a LoRA adapter for this model, got 'model'": {"type": "model"},
        "key 'general.architecture': expected 'llama'": {"arch": "qwen2"},
        "lora_path: .*llama.cpp cannot use it with this model": {"width": WIDTH // 2},
    }
    for message, keys in bad.items():
        with pytest.raises((FormatError, InvalidRequestError), match=message):
            Llama(toy_path, n_ctx=64, lora_path=str(adapter(tmp_path / "lora.gguf", **keys)), verbose=False)


@pytest.mark.parametrize("key", ["llama.full_attention_interval", "llama.ssm.state_size"])
def test_layers_without_a_cache_are_not_counted(
    key: str, toy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_memory", lambda: 32 << 20)
    with pytest.raises(InvalidRequestError, match="a context of 1048576 tokens needs"):
        check_loadable(str(toy_path), {"n_ctx": 2**20})
    check_loadable(str(with_keys(toy_path, tmp_path / "out.gguf", {key: u32(4)})), {"n_ctx": 2**20})


def test_a_context_that_no_machine_has_the_memory_for(toy_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"a context of 2000000000 tokens needs [0-9.]+ GiB"):
        Llama(toy_path, n_ctx=2 * 10**9, verbose=False)


def test_a_length_of_zero_in_the_file(changed: Change) -> None:
    path = changed("llama.context_length", 0, Kind.UINT32)
    with pytest.raises(FormatError, match=r"llama\.context_length.*give n_ctx"):
        Llama(path, n_ctx=0, verbose=False)


def test_a_file_without_a_chat_template_is_warned_about(changed: Change) -> None:
    with pytest.warns(UserWarning, match="no chat template: chats are written as 'llama-2'"):
        Llama(changed("tokenizer.chat_template"), n_ctx=64, verbose=False).close()


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "qwen2", "gpt-2"])
def test_real_vocabularies_pass_and_quickly(name: str) -> None:
    path = real_vocabularies.folder() / f"ggml-vocab-{name}.gguf"
    start = time.process_time()
    check_loadable(str(path), {"vocab_only": True})
    assert time.process_time() - start < 2  # 0.1 s on an idle machine


# ---- control ids in a raw prompt -------------------------------------------------------------------------------------


def test_a_control_id_cannot_take_the_decisions_place(llm: Llama) -> None:
    ids = llm.tokenize(raw_prompt(HARMFUL).encode(), False, True)
    for token_id in llm.policy.control_token_ids:
        for prompt in ([*ids, token_id], [*ids, token_id, 5, 6], [token_id, 5]):
            for stream in (False, True):
                with pytest.raises(InvalidRequestError, match=f"token {token_id} is the control token"):
                    llm.create_completion(prompt, max_tokens=2, stream=stream)
            with pytest.raises(InvalidRequestError, match=f"token {token_id} is the control token"):
                next(llm.generate(prompt))


def test_a_held_control_id_cannot_either(llm: Llama) -> None:
    ids = llm.tokenize(raw_prompt(HARMFUL).encode(), False, True)
    llm.reset()
    llm.eval([*ids, llm.policy.respond_token_id])
    with pytest.raises(InvalidRequestError, match="is the control token"):
        next(llm.generate([5], reset=False))


def test_history_may_hold_control_ids(llm: Llama) -> None:
    turns = [*user("hi"), {"role": "assistant", "content": "Sure."}, *user(BENIGN)]
    ids = llm._chat_prompt(turns, llm.policy, {}).boundary
    assert llm.policy.respond_token_id in ids
    reply: Any = llm.create_completion(ids, max_tokens=2)
    assert reply["refusal_details"]["scores"] == pytest.approx(llm.decide(turns).scores, abs=1e-5)
