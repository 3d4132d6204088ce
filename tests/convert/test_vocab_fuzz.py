"""Whatever stands in the tokenizer files, loading a vocabulary ends in a value or in one of our errors, soon."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import tokenizer_files as files
from fuzzing import message_of, mutations
from real_vocabularies import RealVocab

from refusal_edge.byte_level import BYTE_TO_CHAR
from refusal_edge.convert.control import find_control_tokens
from refusal_edge.convert.gguf_writer import encode_header
from refusal_edge.convert.vocab import load_vocab
from refusal_edge.convert.vocab.sentencepiece import parse_proto

BYTES = RealVocab([*BYTE_TO_CHAR, "th", "the"], [1] * 258, ["t h", "th e"], [])
PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256))]
PIECES += [("▁a", -1.0, 1), ("▁", -2.0, 1), ("a", -3.0, 1), ("  ", -4.0, 4)]


def test_sentencepiece_mutants() -> None:
    seed = files.sentencepiece_model(PIECES)
    mutants = mutations([seed, seed[:200]])
    messages = {message_of(number, lambda m=mutant: parse_proto(m, "mutant")) for number, mutant in mutants}  # type: ignore[misc]
    assert None in messages
    assert len(messages) > 2


def test_tokenizer_json_mutants(tmp_path: Path) -> None:
    n_rows = files.write_byte_level(tmp_path, BYTES, files.split(files.CL100K), bos="<s>")
    seeds = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    _try_mutants(tmp_path, seeds, n_rows)


def test_sentencepiece_json_mutants(tmp_path: Path) -> None:
    vocab = RealVocab([p[0] for p in PIECES], [p[2] for p in PIECES], [], [p[1] for p in PIECES])
    n_rows = files.write_sentencepiece(tmp_path, vocab, model=False)
    seeds = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    _try_mutants(tmp_path, seeds, n_rows)


def load_vocab_and_seal(folder: Path, n_rows: int) -> None:
    vocab = load_vocab(folder, {"eos_token_id": [2, None, -1]}, n_rows, arch="llama")
    encode_header(find_control_tokens(vocab).seal(vocab).kv(), [])


def _try_mutants(folder: Path, seeds: dict[str, bytes], n_rows: int) -> None:
    """Mutates values of the JSON as well as its text, so that most mutants still parse."""
    messages = set()
    for name, seed in seeds.items():
        wrong = _wrong_values(seed)
        for number, mutant in chain(enumerate(wrong), mutations([seed, *wrong])):
            (folder / name).write_bytes(mutant)
            messages.add(message_of(number, lambda: load_vocab_and_seal(folder, n_rows)))
        (folder / name).write_bytes(seed)
    assert None in messages
    assert len(messages) > 10


def _wrong_values(seed: bytes) -> list[bytes]:
    """The document with each of its outer values replaced by one of another type."""
    document, variants = json.loads(seed), []
    for holder in (document, *(value for value in document.values() if isinstance(value, dict))):
        for key, value in list(holder.items()):
            for wrong in (None, -1, 2**40, "x", [], [{}], {}, {"": 0}, [["a"]], True, 1.5):
                holder[key] = wrong
                variants.append(json.dumps(document).encode())
            holder[key] = value
    return variants
