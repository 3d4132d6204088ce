"""Stamps `refusal_edge.*` keys into a GGUF that another tool made, and seals its control tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys, TokenType

from refusal_edge.errors import ConversionError, MetadataError
from refusal_edge.gguf_file import GGUFFile, read_gguf
from refusal_edge.keys import PREFIX, Stamp, is_stamped
from refusal_edge.policy import ControlValue

from .control import RESPOND, ControlToken, ControlTokens, find_control_tokens
from .gguf_rewrite import copy_range, rewritten_header
from .gguf_writer import KeyValue
from .partfile import check_free_space, check_target, part_file
from .selftest import Proven, prove_header, scratch_file
from .vocab import Vocab
from .vocab.from_gguf import can_seal, vocab_from_gguf


@dataclass(frozen=True)
class Change:
    """One value, before and after; None where there was or will be none."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class AnnotateReport:
    """What was written, or would be (`dry_run`)."""

    out: Path
    dry_run: bool
    n_bytes: int
    stamp: Stamp
    control: ControlTokens
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "out": str(self.out),
            "dry_run": self.dry_run,
            "n_bytes": self.n_bytes,
            "token_type": self.stamp.token_type,
            "reachable": self.stamp.reachable,
            "changes": [vars(change) for change in self.changes],
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }


def annotate(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preset: str | None = None,
    tokens: Sequence[str] = (),
    token_type: str = "sealed",
    thresholds: Mapping[str, ControlValue] | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AnnotateReport:
    """Writes `src` to `out` with control tokens sealed and `refusal_edge.*` keys; tensors are copied byte for byte.

    Args:
        preset, tokens: the control tokens, see `find_control_tokens`; without them a stamped file keeps its own.
        token_type: "sealed", "control" or "user", see `ControlTokens.seal`.
        thresholds: control values by category; a category that is not named keeps the file's, else "model".
        progress: called with (bytes written, bytes in all).

    Raises:
        ConversionError: no control tokens, an unknown category, or an `out` that may not be written.
        FormatError: `src` is broken. MetadataError: its refusal_edge.* keys are.
        OSError: the disk is full, or a file cannot be read.
    """
    started = time.monotonic()
    src, out = Path(src), Path(out)
    if not dry_run:
        check_target(out, force=force)
    if src.exists() and not src.is_file():
        raise ConversionError(f"{src} is not a regular file; give the name of a GGUF file")
    with read_gguf(src) as file:
        if (file.integer("split.count") or 1) > 1:
            raise ConversionError(f"{src}: one of several parts; join them first with llama-gguf-split --merge")
        previous = _previous_stamp(file, anew=preset is not None or bool(tokens))
        vocab = vocab_from_gguf(file, known=_once_named(file))
        if previous is not None and preset is None and not tokens:
            control = _as_stamped(previous, vocab)
        else:
            control = find_control_tokens(vocab, preset=preset, tokens=tokens)
        warnings = list(control.warnings)
        if token_type == "sealed" and not can_seal(file):
            token_type = "control"
            warnings.append("tokens of this kind of vocabulary cannot be sealed: they were written as CONTROL")

        with scratch_file() as scratch:
            proven = prove_header(vocab, control, token_type, _header_of(file, vocab), scratch, str(src))
        warnings += [*proven.warnings, *proven.reachability.template_problems]
        stamp = _stamp(control, proven, previous, thresholds or {})
        changed = {**_dropped_keys(file), **_vocab_pairs(vocab, proven.vocab), **_stamp_pairs(stamp)}
        changes = (*_token_changes(vocab, proven.vocab, control), *_key_changes(file, stamp))
        header = rewritten_header(file, changed)
        n_bytes = len(header) + file.data_end - file.data_offset if file.tensors else len(header)
        if not dry_run:
            _write(file, header, out, force=force, progress=progress)
    return AnnotateReport(out, dry_run, n_bytes, stamp, control, changes, tuple(warnings), time.monotonic() - started)


def restamp(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    stamp: Stamp,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes `src` to `out` with the keys of `stamp` in place of its own; vocabulary and tensors stay as they are.

    Raises:
        ConversionError: `out` may not be written. FormatError: `src` is broken. OSError: the disk is full.
    """
    out = Path(out)
    check_target(out, force=force)
    with read_gguf(Path(src)) as file:
        header = rewritten_header(file, {**_dropped_keys(file), **_stamp_pairs(stamp)})
        _write(file, header, out, force=force, progress=progress)


def _previous_stamp(file: GGUFFile, *, anew: bool) -> Stamp | None:
    """The stamp that the file has; with `anew`, a broken one counts as none."""
    try:
        return Stamp.from_kv(file.kv, file.n_vocab()) if is_stamped(file.kv) else None
    except MetadataError as error:
        if anew:
            return None
        raise MetadataError(
            f"{file.path}: {error}; to stamp it anew name the tokens with --preset or --token"
        ) from None


def _once_named(file: GGUFFile) -> tuple[int, ...]:
    """Tokens that keys of ours name, however broken the rest is: they may be sealed."""
    keys = (key for key in file.kv if key.startswith(PREFIX) and key.endswith("token_id"))
    return tuple(i for i in map(file.integer, keys) if i is not None)


def _as_stamped(stamp: Stamp, vocab: Vocab) -> ControlTokens:
    """The control tokens that the file's own keys name."""
    texts = {token.id: token.content for token in vocab.added}
    categories = (ControlToken(c.id, c.title, c.token_id, texts[c.token_id]) for c in stamp.categories)
    respond = ControlToken(RESPOND, "Respond", stamp.respond_token_id, texts[stamp.respond_token_id])
    return ControlTokens(tuple(categories), respond)


def _header_of(file: GGUFFile, original: Vocab) -> Callable[[Vocab], bytes]:
    """The header without tensors, for a vocabulary that may have changed."""
    return lambda vocab: rewritten_header(file, _vocab_pairs(original, vocab), with_tensors=False)


def _vocab_pairs(original: Vocab, vocab: Vocab) -> dict[str, KeyValue | None]:
    """The columns that differ."""
    names, array = Keys.Tokenizer, GGUFValueType.ARRAY
    pairs: dict[str, KeyValue | None] = {}
    if vocab.tokens != original.tokens:
        pairs[names.LIST] = KeyValue(names.LIST, vocab.tokens, array, GGUFValueType.STRING)
    if vocab.types != original.types:
        pairs[names.TOKEN_TYPE] = KeyValue(names.TOKEN_TYPE, vocab.types, array, GGUFValueType.INT32)
    return pairs


def _dropped_keys(file: GGUFFile) -> dict[str, KeyValue | None]:
    return {key: None for key in file.kv if key.startswith(PREFIX)}


def _stamp_pairs(stamp: Stamp) -> dict[str, KeyValue | None]:
    return {key: KeyValue(key, value, kind) for key, value, kind in stamp.to_kv()}


def _stamp(
    control: ControlTokens, proven: Proven, previous: Stamp | None, thresholds: Mapping[str, ControlValue]
) -> Stamp:
    """The new keys. A policy that is already there stays, but for the thresholds given; those end its calibration."""
    stamp = control.stamp(token_type=proven.token_type, reachable=proven.reachability.worst)
    known = [category.id for category in stamp.categories]
    for slug in thresholds:
        if slug not in known:
            raise ConversionError(f"--threshold: unknown category {slug!r}: this file has {', '.join(known)}")
    values: dict[str, ControlValue] = {}
    if previous is not None and previous.policy.control_token_ids == stamp.policy.control_token_ids:
        values = {new.id: old.threshold for new, old in zip(stamp.categories, previous.categories)}
        stamp = replace(
            previous,
            categories=stamp.categories,
            token_type=stamp.token_type,
            reachable=stamp.reachable,
            calibration=None if thresholds else previous.calibration,
        )
    values |= thresholds
    categories = (replace(c, threshold=values.get(c.id, c.threshold)) for c in stamp.categories)
    return replace(stamp, categories=tuple(categories))


def _token_changes(old: Vocab, new: Vocab, control: ControlTokens) -> Iterator[Change]:
    for i in control.ids:
        if old.tokens[i] != new.tokens[i]:
            texts = (vocab.tokens[i].decode(errors="replace") for vocab in (old, new))
            yield Change(f"{Keys.Tokenizer.LIST}[{i}]", *texts)
        if old.types[i] != new.types[i]:
            yield Change(f"{Keys.Tokenizer.TOKEN_TYPE}[{i}]", *(TokenType(v.types[i]).name for v in (old, new)))


def _key_changes(file: GGUFFile, stamp: Stamp) -> Iterator[Change]:
    new = {key: value for key, value, _ in stamp.to_kv()}
    old = {key: value for key, value in file.kv.items() if key.startswith(PREFIX)}
    for key in [*new, *(key for key in old if key not in new)]:
        before, after = old.get(key), new.get(key)
        before = round(before, 6) if isinstance(before, float) else before
        if before != after:
            yield Change(key, before, after)


def _write(
    file: GGUFFile, header: bytes, out: Path, *, force: bool, progress: Callable[[int, int], None] | None
) -> None:
    n_data = file.data_end - file.data_offset if file.tensors else 0
    n_padding = -n_data % file.alignment
    total, written = len(header) + n_data, 0

    def advance(n: int) -> None:
        nonlocal written
        written += n
        if progress is not None:
            progress(written, total)

    check_free_space(out, total)
    with part_file(out, force=force) as (descriptor, part), open(file.path, "rb") as source:
        os.pwrite(descriptor, header, 0)
        advance(len(header))
        copy_range(source.fileno(), file.data_offset, descriptor, len(header), n_data, advance)
        os.pwrite(descriptor, bytes(n_padding), total)
        with read_gguf(part) as copy:
            if _layout(copy) != _layout(file):
                raise ConversionError(f"{part}: reading the file back gave other tensors; please report this")


def _layout(file: GGUFFile) -> list[tuple[object, ...]]:
    return [(t.name, t.shape, t.ggml_type, t.offset - file.data_offset, t.n_bytes) for t in file.tensors.values()]
