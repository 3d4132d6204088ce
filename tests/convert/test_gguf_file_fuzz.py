"""Whatever the bytes, the reader, the keys and the screen end in a value or in one of our errors, soon."""

from __future__ import annotations

import json
from pathlib import Path

from fuzzing import message_of, mutations
from gguf_bytes import BOOL, FLOAT32, INT32, STRING, UINT32, array, gguf, pair, tensor

from refusal_edge.cli import inspect
from refusal_edge.gguf_file import GGUFArray, read_gguf
from refusal_edge.gguf_verify import verify
from refusal_edge.keys import Stamp
from refusal_edge.policy import Category

KINDS = {int: UINT32, float: FLOAT32, str: STRING}
STAMP = Stamp(3, (Category("safety", 2, 0.3), Category("other", 1, "off")), calibration={"method": "np", "n": 100})
PAIRS = [
    pair("general.architecture", STRING, "llama"),
    pair("general.alignment", UINT32, 32),
    pair("general.file_type", UINT32, 7),
    pair("llama.block_count", UINT32, 2),
    pair("tokenizer.ggml.model", STRING, "gpt2"),
    array("tokenizer.ggml.tokens", STRING, ["a", "b", "Ġ[no]", "Ġ[respond]"]),
    array("tokenizer.ggml.token_type", INT32, [1, 1, 1, 1]),
    array("tokenizer.ggml.scores", FLOAT32, [0.0, 0.0, 0.0, 0.0]),
    pair("tokenizer.ggml.eos_token_id", UINT32, 1),
    pair("tokenizer.ggml.add_bos_token", BOOL, 0),
    pair("tokenizer.chat_template", STRING, "{{ messages }}"),
    *(pair(key, KINDS[type(value)], value) for key, value, _ in STAMP.to_kv()),
]
SEEDS = [
    gguf(PAIRS, [tensor("t", (32, 2)), tensor("q", (32,), kind=8, offset=256)], data=bytes(256 + 34)),
    gguf(PAIRS[:6]),
    gguf([PAIRS[0]], [tensor("t", (4,))], data=bytes(16)),
]


def test_mutants_end_in_a_value_or_in_our_error(tmp_path: Path) -> None:
    path, messages = tmp_path / "mutant.gguf", []
    for number, mutant in mutations(SEEDS):
        path.write_bytes(mutant)
        messages.append(message_of(number, lambda: _use(path)))
    assert None in messages
    assert len(set(messages)) > 10


def _use(path: Path) -> None:
    with read_gguf(path) as file:
        for value in file.kv.values():
            if isinstance(value, GGUFArray):
                assert len(value.tolist()) == len(value)
        facts = inspect.collect(file)
        json.dumps(facts)
        assert all(line.isprintable() for line in inspect.screen(facts).split("\n"))
        verify(file)
