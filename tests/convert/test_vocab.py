"""Reading tokenizer files: every place where added tokens hide, and every way in which the files can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_files as files
from gguf import TokenType
from real_vocabularies import RealVocab
from stock_llama import tokenizer, write_vocab

from refusal_edge.byte_level import BYTE_TO_CHAR
from refusal_edge.convert.vocab import Vocab, load_vocab
from refusal_edge.convert.vocab.sentencepiece import parse_proto
from refusal_edge.errors import ConversionError, FormatError

BYTES = RealVocab([*BYTE_TO_CHAR, "th", "the"], [1] * 258, ["t h", "th e"], [])
PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256))]
PIECES += [
    ("▁t", 0.0, 1),
    ("he", -1.0, 1),
    ("▁the", -2.0, 1),
    ("▁", -3.0, 1),
    *((c, -4.0 - i, 1) for i, c in enumerate("aeht")),
]
SPM = RealVocab([p[0] for p in PIECES], [p[2] for p in PIECES], [], [p[1] for p in PIECES])


def byte_level(folder: Path, **options: Any) -> int:
    return files.write_byte_level(folder, BYTES, options.pop("pre", files.split(files.CL100K)), **options)


def edit(path: Path, change: Any) -> None:
    """Applies `change` to a JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def load(folder: Path, n_rows: int, config: dict[str, Any] | None = None, **options: Any) -> Vocab:
    return load_vocab(folder, config or {}, n_rows, arch=options.pop("arch", "llama"), **options)


# Rows


def test_rows_without_a_token_are_unused_padding(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    vocab = load(tmp_path, n + 2)
    assert vocab.tokens[n:] == [b"[PAD%d]" % n, b"[PAD%d]" % (n + 1)]
    assert vocab.types[n:] == [TokenType.UNUSED] * 2


def test_more_tokens_than_rows_names_the_tokens(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    with pytest.raises(
        ConversionError, match=rf"has {n - 2} rows\): {n - 2} ' \[Unsupp.*{n - 1} ' \[respond\]'.*resize_token"
    ):
        load(tmp_path, n - 2)


def test_a_huge_id_costs_nothing(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda d: d["model"]["vocab"].update({"zzz": 2**62}))
    with pytest.raises(ConversionError, match="4611686018427387904 'zzz'"):
        load(tmp_path, n)


def test_empty_and_duplicate_texts_get_their_own(tmp_path: Path) -> None:
    """llama.cpp aborts the process on duplicates; the file we write loads."""
    n = byte_level(tmp_path)
    doubles = [files.added_token(n, "", special=False), files.added_token(n + 1, "the", special=False)]
    edit(tmp_path / "tokenizer.json", lambda d: d["added_tokens"].extend(doubles))
    vocab = load(tmp_path, n + 2)
    assert vocab.tokens[n:] == [b"[EMPTY_%d]" % n, b"[DUPLICATE_%d]" % (n + 1)]
    assert vocab.types[n:] == [TokenType.UNUSED] * 2
    assert vocab.added[-1].content == "the"
    assert any(f"tokens 257 and {n + 1} have the same text 'the'" in warning for warning in vocab.warnings)
    with tokenizer(write_vocab(tmp_path / "v.gguf", vocab.kv())) as tokenize:
        assert tokenize("the") == [257]


# Added tokens


def only_in_decoder(folder: Path) -> None:
    """As the slow tokenizers of transformers 4 save it."""
    document = json.loads((folder / "tokenizer.json").read_text())
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in document["added_tokens"]}
    edit(folder / "tokenizer.json", lambda d: d.update(added_tokens=[]))
    edit(folder / "tokenizer_config.json", lambda d: d.update(added_tokens_decoder=decoder))


def only_in_added_tokens_json(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", lambda d: d.update(added_tokens=[]))
    files.write_json(folder, "added_tokens.json", {t["content"]: t["id"] for t in document["added_tokens"]})
    files.write_json(folder, "special_tokens_map.json", {"additional_special_tokens": [{"content": "<|endoftext|>"}]})


@pytest.mark.parametrize("hide", [lambda folder: None, only_in_decoder, only_in_added_tokens_json])
@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_added_tokens_are_found_wherever_they_hide(hide: Any, kind: str, tmp_path: Path) -> None:
    n = byte_level(tmp_path) if kind == "bpe" else files.write_sentencepiece(tmp_path, SPM, decoder=False)
    hide(tmp_path)
    vocab = load(tmp_path, n)
    assert [t.content for t in vocab.added][-6:] == list(files.CONTROL_TEXTS)
    assert vocab.tokens[-6:] == [text.encode() for text in files.CONTROL_TEXTS]
    assert vocab.types[-6:] == [TokenType.USER_DEFINED] * 6
    eos = vocab.special_ids["eos"]
    assert vocab.types[eos] == TokenType.CONTROL


def test_flags_are_kept_and_looks_count_as_special(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    extra = [
        {**files.added_token(n, "<|turn|>", special=False), "rstrip": True},
        {**files.added_token(n + 1, "xyz", special=False), "lstrip": True, "single_word": True},
    ]
    edit(tmp_path / "tokenizer.json", lambda d: d["added_tokens"].extend(extra))
    vocab = load(tmp_path, n + 2)
    turn, x = vocab.added[-2:]
    assert (turn.rstrip, turn.lstrip, x.lstrip, x.single_word, x.normalized) == (True, False, True, True, True)
    assert vocab.types[n:] == [TokenType.CONTROL, TokenType.USER_DEFINED]


def test_files_that_disagree_are_reported(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    edit(
        tmp_path / "tokenizer_config.json",
        lambda d: d.update(added_tokens_decoder={str(n - 1): {"content": "[other]"}}),
    )
    vocab = load(tmp_path, n)
    assert vocab.added[-1].content == " [respond]"
    assert any("'[other]'" in warning and "' [respond]'" in warning for warning in vocab.warnings)


# Roles of tokens


def test_bos_and_eos_are_always_explicit(tmp_path: Path) -> None:
    n = byte_level(tmp_path / "with", bos="<s>")
    assert load(tmp_path / "with", n).add_special == {"bos": True, "eos": False}
    edit(tmp_path / "with" / "tokenizer.json", lambda d: d.pop("post_processor"))
    assert load(tmp_path / "with", n).add_special == {"bos": False, "eos": False}
    edit(tmp_path / "with" / "tokenizer_config.json", lambda d: d.update(add_bos_token=True))
    assert load(tmp_path / "with", n).add_special == {"bos": True, "eos": False}
    edit(tmp_path / "with" / "tokenizer_config.json", lambda d: d.pop("bos_token"))
    vocab = load(tmp_path / "with", n)
    assert vocab.add_special == {"bos": False, "eos": False}
    assert any("none is added" in warning for warning in vocab.warnings)


def test_template_that_ends_with_eos(tmp_path: Path) -> None:
    n = byte_level(tmp_path, bos="<s>")

    def end_with_eos(document: Any) -> None:
        document["post_processor"]["single"].append({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}})

    edit(tmp_path / "tokenizer.json", end_with_eos)
    assert load(tmp_path, n).add_special["eos"] is True


@pytest.mark.parametrize("generation", [None, [258, 260], 260])
def test_the_end_of_a_turn_ends_generation(generation: Any, tmp_path: Path) -> None:
    """eos ends the text, <|eot_id|> the turn: without the latter the model runs on into a turn of its own."""
    n = byte_level(tmp_path, eos="<|end_of_text|>", more=("<|eom_id|>", "<|eot_id|>"))
    if generation is not None:
        files.write_json(tmp_path, "generation_config.json", {"eos_token_id": generation})
    vocab = load(tmp_path, n)
    assert vocab.special_ids == {"eos": 258, "eot": 260, "eom": 259}
    with tokenizer(write_vocab(tmp_path / "v.gguf", vocab.kv())) as tokenize:
        assert [i for i in range(n) if tokenize.ends_generation(i)] == [258, 259, 260]


def test_an_end_of_turn_with_a_text_of_its_own(tmp_path: Path) -> None:
    n = byte_level(tmp_path, more=("<stop>",))
    vocab = load(tmp_path, n, {"eos_token_id": [258, 259]})
    assert vocab.special_ids == {"eos": 258, "eot": 259}
    with tokenizer(write_vocab(tmp_path / "v.gguf", vocab.kv())) as tokenize:
        assert tokenize.ends_generation(259)


def test_no_end_at_all_is_an_error(tmp_path: Path) -> None:
    """llama.cpp would take token 11."""
    n = byte_level(tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda d: d.pop("eos_token"))
    with pytest.raises(ConversionError, match="no token ends the text: set eos_token"):
        load(tmp_path, n)
    assert load(tmp_path, n, {"eos_token_id": [258]}).special_ids == {"eos": 258}


def test_ids_outside_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    vocab = load(tmp_path, n, {"pad_token_id": -1, "unk_token_id": n})
    assert set(vocab.special_ids) == {"eos"}
    assert sum("is not a token of this vocabulary" in warning for warning in vocab.warnings) == 2


# Chat templates


def test_chat_template_from_each_place(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    assert load(tmp_path, n).chat_templates == {"default": files.CHAT_TEMPLATE}
    files.write_json(tmp_path, "chat_template.json", {"chat_template": "json"})
    vocab = load(tmp_path, n)
    assert vocab.chat_templates == {"default": "json"}
    assert any("another chat template" in warning for warning in vocab.warnings)
    (tmp_path / "chat_template.jinja").write_text("jinja")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool-use.jinja").write_text("tools")
    assert load(tmp_path, n).chat_templates == {"default": "jinja", "tool_use": "tools"}


def test_named_chat_templates(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    edit(tmp_path / "tokenizer_config.json", lambda d: d.update(chat_template=named))
    keys = {pair.key: pair.value for pair in load(tmp_path, n).kv() if "chat_template" in pair.key}
    assert keys == {
        "tokenizer.chat_template.rag": "b",
        "tokenizer.chat_templates": ["rag"],
        "tokenizer.chat_template": "a",
    }


def test_no_chat_template_is_a_warning(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda d: d.pop("chat_template"))
    vocab = load(tmp_path, n)
    assert vocab.chat_templates == {}
    assert any("no chat template" in warning for warning in vocab.warnings)


@pytest.mark.parametrize("template", [7, {"a": "b"}, [1], [{"name": "x"}]])
def test_broken_chat_template(template: Any, tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda d: d.update(chat_template=template))
    with pytest.raises(FormatError, match="chat_template must be a string or a list"):
        load(tmp_path, n)


# Pre-tokenizers (that they split alike is tested in test_vocab_tokenization.py)


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"


@pytest.mark.parametrize(
    ("regex", "pre"),
    [
        (files.CL100K.replace(CONTRACTIONS, "'(?i:[sdmt]|ll|ve|re)"), "dbrx"),
        (POSSESSIVE, "dbrx"),
        (files.QWEN2.replace(CONTRACTIONS, SPELLED_OUT), "qwen2"),
    ],
)
def test_other_spellings_of_a_known_expression(regex: str, pre: str, tmp_path: Path) -> None:
    n = byte_level(tmp_path, pre=files.split(regex))
    as_matches = {"behavior": "Removed", "invert": True}
    edit(tmp_path / "tokenizer.json", lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(as_matches))
    assert load(tmp_path, n).pre == pre


def test_unknown_pre_tokenizer_prints_the_expression(tmp_path: Path) -> None:
    n = byte_level(tmp_path, pre=files.split(r"\w+\d"))
    with pytest.raises(ConversionError, match=r'unknown pre-tokenizer \["\\\\w\+\\\\d"\].*--pre NAME'):
        load(tmp_path, n)
    assert load(tmp_path, n, pre="gpt-2").pre == "gpt-2"


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False},
    ],
)
def test_pre_tokenizer_that_llama_cpp_does_not_have(step: dict[str, Any], tmp_path: Path) -> None:
    n = byte_level(tmp_path, pre={"type": "Sequence", "pretokenizers": [step, files.byte_level(use_regex=False)]})
    with pytest.raises(ConversionError, match=f"unknown pre-tokenizer.*{step['type']}"):
        load(tmp_path, n)


@pytest.mark.parametrize(("kind", "said"), [("NFC", False), ("Lowercase", True), ("NFKC", True)])
def test_normalization_that_llama_cpp_leaves_out_is_said(kind: str, said: bool, tmp_path: Path) -> None:
    n = byte_level(tmp_path, normalizer={"type": "Sequence", "normalizers": [{"type": kind}]})
    assert any(f"normalizes text ({kind})" in warning for warning in load(tmp_path, n).warnings) is said


# Merges


def test_merges_as_pairs_and_with_spaces(tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda d: d["model"].update(merges=[["t", "h"], ["th", "e"], ["a b", "c"]]))
    assert load(tmp_path, n).merges == ["t h", "th e", "aĠb c"]


@pytest.mark.parametrize("merge", ["th", "t h e", ["t"], ["t", 1], ["", "h"], None])
def test_broken_merge(merge: Any, tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda d: d["model"].update(merges=["t h", merge]))
    with pytest.raises(FormatError, match="merge 1 must be two pieces"):
        load(tmp_path, n)


# SentencePiece


def test_scores_come_back_from_the_merges(tmp_path: Path) -> None:
    n = files.write_sentencepiece(tmp_path, SPM, model=False)
    vocab = load(tmp_path, n)
    assert vocab.scores is not None
    ids = {text: i for i, (text, _, _) in enumerate(PIECES)}
    assert [vocab.scores[ids[text]] for text in ("▁t", "he", "▁the")] == [0.0, -1.0, -2.0]
    assert np.all(vocab.scores[[ids[c] for c in "aeht"]] < -2.0)
    assert vocab.warnings == []


def test_merges_of_another_trainer_are_reported(tmp_path: Path) -> None:
    n = files.write_sentencepiece(tmp_path, SPM, model=False)
    edit(tmp_path / "tokenizer.json", lambda d: d["model"]["merges"].pop())
    assert any("possible merges" in warning for warning in load(tmp_path, n).warnings)


@pytest.mark.parametrize(
    ("arch", "stated", "expected"), [("llama", None, None), ("llama", False, False), ("gemma2", None, False)]
)
def test_space_prefix(arch: str, stated: bool | None, expected: bool | None, tmp_path: Path) -> None:
    n = files.write_sentencepiece(tmp_path, SPM)
    edit(tmp_path / "tokenizer_config.json", lambda d: d.update(add_prefix_space=stated))
    assert load(tmp_path, n, arch=arch).add_space_prefix is expected


@pytest.mark.parametrize("left", ["model", "json"])
def test_no_space_prefix_where_the_model_has_none(left: str, tmp_path: Path) -> None:
    n = files.write_sentencepiece(tmp_path, SPM, prefix=False, model=left == "model", tokenizer=left == "json")
    assert load(tmp_path, n).add_space_prefix is False


def test_proto_equals_the_reference_reader() -> None:
    spm = pytest.importorskip("sentencepiece", reason="the reference reader is not installed")
    data = files.sentencepiece_model(PIECES)
    reference = spm.SentencePieceProcessor()
    reference.LoadFromSerializedProto(data)
    proto = parse_proto(data, "x")
    assert [text.decode() for text, _, _ in proto.pieces] == [reference.IdToPiece(i) for i in range(len(PIECES))]
    assert [np.float32(score) for _, score, _ in proto.pieces] == [
        np.float32(reference.GetScore(i)) for i in range(len(PIECES))
    ]
    checks = {2: "IsUnknown", 3: "IsControl", 6: "IsByte"}
    for i, (_, _, kind) in enumerate(proto.pieces):
        assert {k for k, name in checks.items() if getattr(reference, name)(i)} == ({kind} & checks.keys())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\x0f", "not a SentencePiece model"),
        (b"\x0a\x05ab", "not a SentencePiece model"),
        (b"\xff" * 20, "not a SentencePiece model"),
        (files.field(1, files.field(1, b"\xff\xfe")), "not a SentencePiece model"),
        (files.field(1, files.field(1, b"a") + files.number(3, 9)), "not a SentencePiece model"),
        (files.field(1, files.field(1, b"a") + b"\x15\x00\x00\xc0\x7f"), "not a SentencePiece model"),
        (files.field(1, files.number(1, 7)), "not a SentencePiece model"),
        (b"IQ== 0\nIg== 1\n", "not a SentencePiece model"),
        (files.sentencepiece_model(PIECES, model_type=1), "model type 1"),
    ],
)
def test_broken_tokenizer_model(data: bytes, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        parse_proto(data, "tokenizer.model")


def test_a_byte_without_a_piece_is_an_error(tmp_path: Path) -> None:
    """llama.cpp throws on text that needs it, and takes the host down."""
    pieces = [p for p in PIECES if p[0] != "<0x41>"]
    vocab = RealVocab([p[0] for p in pieces], [p[2] for p in pieces], [], [p[1] for p in pieces])
    n = files.write_sentencepiece(tmp_path, vocab)
    with pytest.raises(ConversionError, match="lacks byte pieces"):
        load(tmp_path, n)


# Files


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"neither tokenizer.json nor tokenizer.model"):
        load(tmp_path, 10)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"save the tokenizer again"):
        load(tmp_path, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"a": 1, "a": 2}', "appears twice"),
        ('{"model": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "nested too deep|not valid JSON"),
        ('{"model": {"type": "Unigram"}}', "model type 'Unigram'"),
        ('{"model": []}', "model must be an object"),
        ('{"model": {"type": "BPE", "vocab": {"a": -1}}}', "must map pieces to ids"),
        ('{"model": {"type": "BPE", "vocab": {"a": true}}}', "must map pieces to ids"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [{"id": 0}]}', "has no text"),
        (
            '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [{"id": "0", "content": "a"}]}',
            "the id '0'",
        ),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": {}}', "list of objects"),
    ],
)
def test_broken_tokenizer_json(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConversionError, match=message) as caught:
        load(tmp_path, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bpe", "spm", "spm-json"])
def test_the_same_vocabulary_as_transformers_saves_it_again(kind: str, tmp_path: Path) -> None:
    """Version 5 of transformers rewrites every file of it, and leaves only tokenizer.json of a SentencePiece model."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    if kind == "bpe":
        n = byte_level(ours, bos="<s>")
    else:
        n = files.write_sentencepiece(ours, SPM, model=kind == "spm", decoder=False)
    files.write_json(ours, "config.json", {"model_type": "llama", "vocab_size": n})
    before = load(ours, n)
    transformers.AutoTokenizer.from_pretrained(ours).save_pretrained(theirs)
    after = load(theirs, n)
    for part in ("model", "pre", "tokens", "types", "merges", "special_ids", "add_special", "add_space_prefix"):
        assert getattr(after, part) == getattr(before, part), part
    assert after.chat_templates == before.chat_templates
    assert [(t.id, t.content, t.special) for t in after.added] == [(t.id, t.content, t.special) for t in before.added]


@pytest.mark.parametrize("listed", [["<x>"], [{"content": "<x>"}], {"image_token": "<x>"}])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_special_by_being_listed(key: str, listed: Any, tmp_path: Path) -> None:
    n = byte_level(tmp_path)
    edit(tmp_path / "tokenizer.json", lambda d: d["added_tokens"].append(files.added_token(n, "<x>", special=False)))
    assert load(tmp_path, n + 1).types[n] == TokenType.USER_DEFINED
    files.write_json(tmp_path, "special_tokens_map.json", {key: listed})
    assert load(tmp_path, n + 1).types[n] == TokenType.CONTROL
