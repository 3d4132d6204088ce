"""The whole conversion as one plain function."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import Keys

from refusal_edge.errors import ConversionError, FormatError
from refusal_edge.gguf_file import read_gguf
from refusal_edge.keys import Stamp

from .adapter import Adapter, open_adapter
from .checkpoint import open_checkpoint
from .config import Config
from .control import ControlTokens, find_control_tokens
from .family import Family
from .gguf_writer import KeyValue, encode_header
from .jsonfile import shown
from .metadata import avoid_phi3, general_keys
from .partfile import check_free_space, check_target, part_file
from .plan import Plan, make_plan, vocabulary_rows
from .recipe import parse_recipe
from .rows import Rows, StoredRows
from .selftest import prove, scratch_file
from .stream import write_all, write_tensors
from .types import as_stored
from .untrained import untrained_tokens
from .vocab import Vocab, load_vocab

MAX_THREADS = 4
"""A thread holds about 20 MB; beyond four the disk is the limit."""
MOST_THREADS = 64
"""What may be asked for."""


@dataclass(frozen=True)
class Report:
    """What was written, or would be (`dry_run`)."""

    out: Path
    dry_run: bool
    arch: str
    file_type: str
    n_params: int
    n_tensors: int
    n_vocab: int
    n_bytes: int
    stamp: Stamp
    control: ControlTokens
    warnings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "out": str(self.out),
            "dry_run": self.dry_run,
            "architecture": self.arch,
            "file_type": self.file_type,
            "n_params": self.n_params,
            "n_tensors": self.n_tensors,
            "n_vocab": self.n_vocab,
            "n_bytes": self.n_bytes,
            "token_type": self.stamp.token_type,
            "reachable": self.stamp.reachable,
            "control_tokens": [
                {"role": token.slug, "title": token.title, "id": token.id, "text": token.text} for token in self.control
            ],
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }


def convert(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    outtype: str = "auto",
    quantize: str | None = None,
    head: str | None = None,
    preset: str | None = None,
    tokens: Sequence[str] = (),
    token_type: str = "sealed",
    pre: str | None = None,
    name: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Converts the Hugging Face checkpoint in the folder `src` to the GGUF file `out`.

    Args:
        adapter: folder of a PEFT adapter to merge into `src`; its tokenizer, if it has one, is the model's.
        outtype: type of the matrices, a key of `OUTTYPES`, or "auto": as they are stored.
        quantize: a mix of block types, a key of `MIXES`, instead of `outtype`.
        head: type of the output head, which holds the control tokens' rows; None: q8_0 under any 4-bit type.
        preset, tokens: the control tokens, see `find_control_tokens`.
        token_type: "sealed", "control" or "user", see `ControlTokens.seal`.
        pre: llama.cpp's name of the pre-tokenizer, where it cannot be found.
        name: the model's name; None takes what the checkpoint says of itself.
        force: replace an existing `out`.
        dry_run: check and plan everything, write nothing.
        threads: workers; None for one per processor, at most `MAX_THREADS`.
        progress: called with (bytes written, bytes in all).

    Raises:
        ConversionError: the checkpoint cannot be converted as asked; nothing is written.
        FormatError: one of its files is broken.
        OSError: the disk is full, or a file cannot be read.
    """
    started = time.monotonic()
    src, out = Path(src), Path(out)
    check_target(out, force=force)
    _check_options(src, out, name, threads)

    checkpoint = open_checkpoint(src)
    family = checkpoint.family
    config = family.read_config(checkpoint.config, str(src / "config.json"))
    sources: dict[str, Rows] = {name: StoredRows(tensor) for name, tensor in checkpoint.weights.items()}
    stored_type = as_stored(sources)
    lora = None if adapter is None else open_adapter(Path(adapter))
    if lora is not None:
        sources = _merge(lora, sources, config, family)
    n_vocab = vocabulary_rows(sources)
    warnings = [*checkpoint.warnings, *family.check(config), *_check_vocab_size(config, n_vocab)]

    recipe = parse_recipe(None if outtype == "auto" else outtype, quantize, head, config, family.arch, stored_type)
    plan = make_plan(family, config, sources, recipe.choose)

    vocab = _load_vocab(src, lora, config, n_vocab, family.arch, pre)
    control = find_control_tokens(vocab, preset=preset, tokens=tokens)
    warnings += [*vocab.warnings, *control.warnings, *untrained_tokens(sources, control)]
    general, notes = general_keys(
        src, checkpoint.config, family.arch, name=name, n_params=plan.n_params, file_type=recipe.file_type
    )
    general = avoid_phi3(general, vocab.tokens)
    tokenizer = lora.folder if lora is not None and lora.has_tokenizer else src
    source = str(tokenizer) if pre is None else f"{tokenizer} with --pre {shown(pre)}"
    with scratch_file() as scratch:
        proven = prove(
            vocab, control, token_type, arch=family.arch, name=_name_in(general), scratch=scratch, source=source
        )
    if problems := proven.reachability.template_problems:
        raise ConversionError(f"{tokenizer}: {problems[0]}")
    warnings += [*notes, *proven.warnings]
    stamp = control.stamp(token_type=proven.token_type, reachable=proven.reachability.worst)

    keys = [*general, *family.keys(config, n_vocab), *proven.vocab.kv(), *(KeyValue(*pair) for pair in stamp.to_kv())]
    header = encode_header(keys, plan.tensors)
    del vocab, proven, keys  # a large vocabulary takes more memory than everything that follows
    n_bytes = len(header) + plan.n_bytes
    if not dry_run:
        _write(out, header, plan, force=force, threads=threads, progress=progress)
    return Report(
        out=out,
        dry_run=dry_run,
        arch=family.arch,
        file_type=recipe.file_type.name.partition("_")[2],
        n_params=plan.n_params,
        n_tensors=len(plan.tensors),
        n_vocab=n_vocab,
        n_bytes=n_bytes,
        stamp=stamp,
        control=control,
        warnings=tuple(warnings),
        seconds=time.monotonic() - started,
    )


def _check_options(src: Path, out: Path, name: str | None, threads: int | None) -> None:
    if out.resolve().parent == src.resolve() and out.exists() and out.suffix != ".gguf":
        raise ConversionError(f"{out} is a file of the checkpoint; write the GGUF elsewhere")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConversionError(f"--threads must be in [1, {MOST_THREADS}], got {threads}")
    if name is not None and not (name.isprintable() and name.strip()):
        raise ConversionError(f"--name must be printable text, got {shown(name)}")


def _merge(adapter: Adapter, sources: dict[str, Rows], config: Config, family: Family) -> dict[str, Rows]:
    tied = family.is_tied(config)
    if tied and adapter.unties and family.head == "tied":
        raise config.unsupported(
            f"the adapter unties the output head from the embedding, which {family.arch} cannot be"
        )
    return adapter.merge(sources, tied=tied)


def _load_vocab(src: Path, adapter: Adapter | None, config: Config, n_vocab: int, arch: str, pre: str | None) -> Vocab:
    if adapter is None or not adapter.has_tokenizer:
        return load_vocab(src, config, n_vocab, arch=arch, pre=pre)
    try:
        return load_vocab(adapter.folder, config, n_vocab, arch=arch, pre=pre)
    except FormatError:
        raise
    except ConversionError as error:
        if adapter.has_embedding:
            raise
        raise ConversionError(
            f"{error}; the adapter holds no embedding, so rows that were trained for it are lost"
        ) from None


def _write(
    out: Path,
    header: bytes,
    plan: Plan,
    *,
    force: bool,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    n_bytes, n_written = len(header) + plan.n_bytes, 0

    def advance(n: int) -> None:
        nonlocal n_written
        n_written += n
        if progress is not None:
            progress(n_written, n_bytes)

    check_free_space(out, n_bytes)
    with part_file(out, force=force) as (descriptor, part):
        os.ftruncate(descriptor, n_bytes)
        write_all(descriptor, header, 0)
        advance(len(header))
        threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        write_tensors(descriptor, len(header), plan.tensors, threads=threads, progress=advance)
        _check_written(part, plan)


def _check_written(part: Path, plan: Plan) -> None:
    """Reads the new file's header back, as any other program will."""
    with read_gguf(part) as file:
        written = [
            (t.name, t.shape, t.ggml_type, t.offset - file.data_offset, t.n_bytes) for t in file.tensors.values()
        ]
    planned = [(t.name, t.shape[::-1], int(t.type), t.offset, t.n_bytes) for t in plan.tensors]
    if written != planned:
        raise FormatError(f"{part}: reading the file back gave other tensors than were written; please report this")


def _check_vocab_size(config: Config, n_vocab: int) -> Iterator[str]:
    stated = config.get("vocab_size", n_vocab)
    if stated != n_vocab:
        yield f"config.json says {stated!r} tokens, the weights have rows for {n_vocab}, which is what counts"


def _name_in(general: Sequence[KeyValue]) -> str | None:
    return next((pair.value for pair in general if pair.key == Keys.General.NAME), None)
