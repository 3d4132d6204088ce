"""From the tokenizer files of a checkpoint to a `Vocab`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusal_edge.errors import ConversionError

from . import byte_level, chat_template, pre_tokenizer, sentencepiece, specials
from .files import TokenizerFiles
from .model import Vocab
from .rows import Rows

GEMMA = ("gemma", "gemma2", "gemma3")


def load_vocab(src: Path, config: Mapping[str, Any], n_rows: int, *, arch: str, pre: str | None = None) -> Vocab:
    """Reads the vocabulary of the checkpoint in the folder `src`.

    Args:
        config: its config.json.
        n_rows: rows of the embedding matrix: the size of the vocabulary, whatever the files say.
        arch: GGUF architecture, for the few names that depend on it.
        pre: name of the pre-tokenizer, instead of finding it.

    Raises:
        ConversionError: no tokenizer, one that llama.cpp does not have, or more tokens than rows.
        FormatError: a file is broken.
    """
    files = TokenizerFiles.read(src)
    rows = Rows(n_rows)
    bpe = bool(files.tokenizer) and byte_level.is_byte_level(files)
    prefix, warnings = None, list[str]()
    if bpe:
        byte_level.read_pieces(files, rows)
    else:
        _check_sentencepiece(files)
        prefix, warnings = sentencepiece.read_pieces(files, rows)
    added = files.added
    rows.put_added(added.values())
    rows.check_size(src)
    if not bpe:
        sentencepiece.check_bytes(rows, src)
    merges = byte_level.merges(files) if bpe else None
    if merges == []:
        raise files.broken("tokenizer.json", "model.merges is empty, which llama.cpp does not load")
    ids = {text.decode(errors="replace"): i for i, text in reversed(list(enumerate(rows.tokens)))}
    ids |= {token.content: token.id for token in added.values()}
    special = specials.find(files, config, ids, n_rows)
    templates, template_warnings = chat_template.find(src, files.config)
    return Vocab(
        model="gpt2" if bpe else "llama",
        pre=pre or (pre_tokenizer.find(files, arch, {token.content for token in added.values()}) if bpe else "default"),
        tokens=rows.tokens,
        types=rows.types,
        scores=None if bpe else rows.scores,
        merges=merges,
        added=list(added.values()),
        special_ids=special.ids,
        add_special=special.add,
        chat_templates=templates,
        add_space_prefix=None if bpe else _space_prefix(files, arch, prefix),
        warnings=[
            *warnings,
            *files.warnings,
            *_normalizations(files, bpe=bpe),
            *special.warnings,
            *template_warnings,
            *rows.make_unique(),
        ],
    )


def _check_sentencepiece(files: TokenizerFiles) -> None:
    if files.proto is None and files.base_model.get("type") != "BPE":
        raise ConversionError(
            f"{files.folder / 'tokenizer.json'}: model type {files.base_model.get('type')!r}; "
            "supported are byte-level BPE and SentencePiece BPE"
        )


def _normalizations(files: TokenizerFiles, *, bpe: bool) -> list[str]:
    """What the tokenizer does to text before splitting it, and llama.cpp does not."""
    done_by_llama_cpp = () if bpe else ("Prepend", "Replace")
    kinds = [str(step.get("type")) for step in byte_level.steps(files.tokenizer.get("normalizer"))]
    left_out = [kind for kind in kinds if kind not in done_by_llama_cpp and kind != "NFC"]  # prompts mostly are NFC
    if not left_out:
        return []
    return [
        f"the tokenizer normalizes text ({', '.join(left_out)}), llama.cpp does not: some text will split differently"
    ]


def _space_prefix(files: TokenizerFiles, arch: str, prefix: bool | None) -> bool | None:
    """llama.cpp puts a space before the text unless told otherwise."""
    if arch in GEMMA:
        return False
    stated = files.config.get("add_prefix_space")
    if isinstance(stated, bool):
        return stated
    return False if prefix is False else None
