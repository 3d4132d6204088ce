"""Every `tokenizer.*` key as llama.cpp's own converter writes it, or with a reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cases import digest_file
from stock_llama import write_vocab
from vocab_cases import CASES

from refusal_edge.convert.control import find_control_tokens
from refusal_edge.convert.vocab import load_vocab

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "upstream_vocab.json").read_text(encoding="utf-8"))

EOT = {"eot_token_id": "left out, llama.cpp takes whichever text that may end a turn comes first in a hash map"}
ADD_EOS = {"add_eos_token": "left out, llama.cpp's default depends on the name of the pre-tokenizer"}
IDS = {
    f"{role}_token_id": "upstream looks the texts up in tokenizer.json alone, which is not there"
    for role in ("bos", "eos", "unknown")
}
LOST = dict.fromkeys(("tokens", "token_type"), "upstream loses the control tokens: it reads added_tokens_decoder alone")
DEVIATIONS: dict[str, dict[str, str]] = {
    "llama-bpe": EOT | ADD_EOS,
    "qwen2": EOT,
    "spm-model": IDS,
    "spm-json": {"scores": "upstream writes -1000 for every piece, so that text tokenizes differently"},
    "spm-no-decoder": LOST | {"scores": "of the lost tokens"},
}


@pytest.mark.parametrize("name", CASES)
def test_keys_equal_upstream(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    config = case.write_folder(tmp_path)
    vocab = load_vocab(tmp_path, config, config["vocab_size"], arch=case.arch)
    control = find_control_tokens(vocab)
    special = {token.id: token.special for token in vocab.added}[control.respond.id]
    as_upstream = control.seal(vocab, "control" if special else "user")
    ours = tokenizer_keys(write_vocab(tmp_path / "ours.gguf", as_upstream.kv()))
    theirs = FIXTURE[name]
    different = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs if ours.get(key) != theirs.get(key)}
    assert set(different) == {f"tokenizer.ggml.{key}" for key in DEVIATIONS.get(name, ())}, different


def tokenizer_keys(path: Path) -> dict[str, Any]:
    return {key: value for key, value in digest_file(path)["keys"].items() if key.startswith("tokenizer.")}
