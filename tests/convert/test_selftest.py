"""Control tokens that no text reaches: in stock llama.cpp, on real vocabularies, whatever the front end parses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import real_vocabularies
import tokenizer_files as files
from checkpoints import write_checkpoint
from gguf import TokenType
from hard_texts import hard_texts
from stock_llama import tokenizer, write_vocab
from test_control import N_BASE, bpe

from refusal_edge.convert.control import ControlTokens, find_control_tokens
from refusal_edge.convert.selftest import prove, self_test
from refusal_edge.convert.vocab import AddedToken, Vocab, load_vocab
from refusal_edge.errors import ConversionError

FRAMES = ("{}", " {}", "a{}", "a {} b", "\n{}", "<|user|>\n{}\n", "{}{}", "{}{}{}", "\u00a0{}", "\u3000{}\u200b")


def real(kind: str, folder: Path) -> tuple[Vocab, ControlTokens]:
    if kind == "bpe":
        source = real_vocabularies.load("llama-bpe")
        n = files.write_byte_level(
            folder, source, files.split(files.CL100K), ignore_merges=True, bos="<|begin_of_text|>"
        )
    else:
        n = files.write_sentencepiece(folder, real_vocabularies.load("llama-spm"))
    vocab = load_vocab(folder, {}, n, arch="llama")
    return vocab, find_control_tokens(vocab)


def proven(vocab: Vocab, control: ControlTokens, token_type: str, folder: Path) -> Any:
    return prove(vocab, control, token_type, arch="llama", name=None, scratch=folder / "scratch.part", source="x")


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_no_text_reaches_a_sealed_token(kind: str, tmp_path: Path) -> None:
    vocab, control = real(kind, tmp_path)
    result = proven(vocab, control, "sealed", tmp_path)
    assert (result.token_type, result.reachability.worst, result.warnings) == ("sealed", "never", ())
    assert not (tmp_path / "scratch.part").exists()

    texts = [
        frame.format(*[t.text if spaced else t.text.strip()] * 3)
        for frame in FRAMES
        for t in control
        for spaced in (0, 1)
    ]
    texts += [text for text in hard_texts() if "[" in text]
    path = write_vocab(tmp_path / "vocab.gguf", result.vocab.kv())
    with tokenizer(path) as tokenize:
        for text in texts:
            for special in (False, True):
                for add_special in (False, True):
                    assert not {*control.ids} & {*tokenize(text, special=special, add_special=add_special)}, text
        assert [tokenize.piece(t.id) for t in control] == [t.text.encode() for t in control]  # and yet they print


def test_each_type_is_reached_as_the_specification_says(tmp_path: Path) -> None:
    vocab = runnable(bpe("[refuse]", "[respond]"))
    control = find_control_tokens(vocab)
    for token_type, expected in (("control", "special"), ("user", "text")):
        result = proven(vocab, control, token_type, tmp_path)
        assert result.token_type == token_type
        assert result.reachability.by_token == dict.fromkeys(control.ids, expected)


def runnable(vocab: Vocab) -> Vocab:
    """Fills in what llama.cpp needs beyond tokens and merges."""
    return Vocab(**{**vars(vocab), "special_ids": {"eos": 0}, "add_special": {"bos": False, "eos": False}})


@pytest.mark.parametrize("text", ["the", " q"])
def test_a_token_that_words_reach_becomes_control(text: str, tmp_path: Path) -> None:
    """ "the" is what merges form, " q" is a word of its own where merges are ignored: no type hides such a text."""
    added = AddedToken(N_BASE + 1, text)
    vocab = bpe("[respond]", added)
    if text == "the":
        vocab.tokens[257] = b"[UNUSED]"  # the trained piece would be a duplicate
        vocab.types[257] = int(TokenType.UNUSED)
    vocab = runnable(vocab)
    control = find_control_tokens(vocab, tokens=["respond=[respond]", f"word={N_BASE + 1}"])
    result = proven(vocab, control, "sealed", tmp_path)
    assert result.token_type == "control"
    assert f"the text {text!r}" in result.warnings[0]
    assert result.vocab.types[-2:] == [TokenType.CONTROL] * 2


def test_the_finished_file_can_be_asked(tmp_path: Path) -> None:
    vocab = runnable(bpe("[refuse]", "[respond]"))
    control = find_control_tokens(vocab)
    result = self_test(write_vocab(tmp_path / "x.gguf", control.seal(vocab).kv()), control)
    assert result.worst == "never"
    assert result.n_texts > 20


def test_a_vocabulary_that_llama_cpp_does_not_load_is_one_line(tmp_path: Path) -> None:
    vocab = runnable(bpe("[refuse]", "[respond]"))
    control = find_control_tokens(vocab)
    unknown = Vocab(**{**vars(vocab), "pre": "no-such-thing"})
    with pytest.raises(ConversionError, match=r"cannot load the vocabulary: .*'no-such-thing'"):
        self_test(write_vocab(tmp_path / "x.gguf", unknown.kv()), control)


def test_an_abort_of_llama_cpp_does_not_take_us_down(tmp_path: Path) -> None:
    vocab = runnable(bpe("[refuse]", "[respond]"))
    control = find_control_tokens(vocab)
    vocab.tokens[5] = vocab.tokens[6]  # llama.cpp asserts that texts are unique
    with pytest.raises(ConversionError, match=r"self-test: llama\.cpp aborts: GGML_ASSERT"):
        self_test(write_vocab(tmp_path / "x.gguf", vocab.kv()), control)


def test_a_full_folder_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    vocab = runnable(bpe("[refuse]", "[respond]"))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        proven(vocab, find_control_tokens(vocab), "sealed", tmp_path)
    assert error.value.filename == str(tmp_path / "scratch.part")


INTRUDERS = ("json", "ctypes", "gguf", "llama_cpp", "numpy", "refusal_edge", "sitecustomize")


@pytest.mark.parametrize("name", ["refusal-edge", "python -c"])
def test_no_file_of_the_current_folder_runs(name: str, tmp_path: Path) -> None:
    """A checkpoint comes from a stranger, and people convert from inside its folder."""
    model = write_checkpoint(tmp_path / "model")
    for module in INTRUDERS:
        (model / f"{module}.py").write_text("open('intruder', 'w').close(); raise SystemExit('intruder')")
    main = "import sys; from refusal_edge.cli import main; sys.exit(main(['convert', '.', '-o', 'out.gguf']))"
    (tmp_path / "refusal-edge").write_text(main)
    start = (
        [str(tmp_path / "refusal-edge")] if name == "refusal-edge" else ["-c", f"import sys; del sys.path[0]; {main}"]
    )
    child = subprocess.run([sys.executable, *start], cwd=model, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    assert not (model / "intruder").exists()
    assert (model / "out.gguf").is_file()


def test_inside_an_application_it_runs_in_the_same_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/no/python/here")
    vocab = runnable(bpe("[refuse]", "[respond]"))
    control = find_control_tokens(vocab)
    path = write_vocab(tmp_path / "x.gguf", control.seal(vocab).kv())
    assert self_test(path, control).worst == "never"
    path.write_bytes(b"GGUF")
    with pytest.raises(ConversionError, match="cannot load the vocabulary"):
        self_test(path, control)
