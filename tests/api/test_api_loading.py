"""Files and context sizes that llama.cpp would abort, hang or say nothing on: one line instead."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType as Kind
from helpers import BENIGN, HARMFUL, raw_prompt, user

from refusal_edge import Llama
from refusal_edge.convert.gguf_rewrite import rewritten_header
from refusal_edge.convert.gguf_writer import KeyValue
from refusal_edge.errors import FormatError, InvalidRequestError
from refusal_edge.gguf_file import read_gguf
from refusal_edge.loading import check_loadable

sys.path.append(str(Path(__file__).parents[1] / "convert"))
import real_vocabularies

Change = Callable[..., Path]


@pytest.fixture
def changed(toy_path: Path, tmp_path: Path) -> Change:
    """The toy with one key changed, or removed where there is no value."""

    def change(key: str, *value: Any) -> Path:
        out = tmp_path / "changed.gguf"
        with read_gguf(toy_path) as file:
            header = rewritten_header(file, {key: KeyValue(key, *value) if value else None})
            out.write_bytes(header + toy_path.read_bytes()[file.data_offset :])
        return out

    return change


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


def test_a_folder_is_not_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a folder, expected a GGUF file"):
        Llama(tmp_path, verbose=False)


@pytest.mark.parametrize("n_ctx", [-5, 10**12, 10**400, 1.5, "x", None, True])
def test_n_ctx_out_of_range(toy_path: Path, n_ctx: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"n_ctx: expected an integer in \[0, 2147483647\]"):
        Llama(toy_path, n_ctx=n_ctx, verbose=False)


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
