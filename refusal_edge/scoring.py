"""A data file through a model into a scores file: in constant memory, resumable, in shards that merge."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import heapq
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from refusal_edge.calibrate.rows import DataFile, Row
from refusal_edge.calibrate.scorefile import Header, read_header, read_lines, scored_row, skipped_row
from refusal_edge.errors import InvalidRequestError
from refusal_edge.gguf_file import read_gguf
from refusal_edge.pins import template_sha256

if TYPE_CHECKING:
    from refusal_edge.judge import Judge
    from refusal_edge.llama import Llama

GROUP: Final = 64
_BLOCK: Final = 1 << 22

Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class Scored:
    """What a run did: rows scored now, rows that were there already, and rows left out (line -> reason)."""

    scored: int
    resumed: int
    skipped: dict[int, str]


def header_for(llm: Llama, data: DataFile, shard: tuple[int, int] = (1, 1)) -> Header:
    """The header of scores of `data` by `llm`; hashes the model's tensors, which reads the whole file."""
    file_type = llm.metadata.get("general.file_type", "")
    return Header(
        model=Path(llm.model_path).name,
        weights_sha256=weights_sha256(llm.model_path),
        file_type=int(file_type) if file_type.isdecimal() else None,
        template_sha256=template_sha256(llm.metadata.get("tokenizer.chat_template", "")),
        dataset=data.path.name,
        dataset_sha256=data.sha256,
        dataset_rows=data.n_rows,
        policy=llm.policy,
        shard=shard,
    )


def weights_sha256(path: str | Path) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor by name: stamping a file with other keys keeps it."""
    digest = hashlib.sha256()
    with read_gguf(path) as model, open(path, "rb") as file:
        for name, tensor in sorted(model.tensors.items()):
            digest.update(f"{name}\0{tensor.ggml_type}\0{tuple(tensor.shape)}\0".encode())
            file.seek(tensor.offset)
            left = tensor.n_bytes
            while left and (block := file.read(min(left, _BLOCK))):
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def score_rows(llm: Llama, rows: Sequence[Row], *, judge: Judge | None = None) -> list[dict[str, Any]]:
    """Scored rows, JSON-ready; the function to hand to another engine (docs/calibration.md: Ray Data).

    With a judge each row also gets `text`: what the model writes after each decision, and whether that is a refusal.

    Raises:
        InvalidRequestError: a row that the model cannot take, say over the context; the message does not say which.
    """
    lines = [scored_row(row, d) for row, d in zip(rows, llm.decide_batch([row.messages for row in rows]))]
    if judge is not None:
        from refusal_edge.judge import forced_texts

        for line, row in zip(lines, rows):
            line["text"] = forced_texts(llm, row.messages, judge)
    return lines


def score_file(
    llm: Llama,
    data: DataFile,
    out: str | Path,
    *,
    shard: tuple[int, int] = (1, 1),
    skip_bad: bool = False,
    judge: Judge | None = None,
    progress: Progress = lambda done, total: None,
) -> Scored:
    """Scores what `out` does not hold yet, a group at a time; what is written is never scored again.

    Args:
        skip_bad: rows that the model cannot take are written with their reason, instead of ending the run.

    Raises:
        InvalidRequestError: such a row (file, line, reason), or an `out` of another model, data set, policy or shard.
    """
    out = Path(out)
    header = header_for(llm, data, shard)
    total = len(range(shard[0] - 1, data.n_rows, shard[1]))
    with _open_locked(out) as file:
        last_line, resumed, skipped = _resume(file, out, header)
        rows = data.rows(last_line, shard)
        scored = 0
        progress(resumed, total)
        while group := list(islice(rows, GROUP)):
            for line in _score_group(llm, group, data.path, skip_bad, judge):
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                if "error" in line:
                    skipped[line["line"]] = line["error"]
                scored += 1
            file.flush()
            progress(resumed + scored, total)
    return Scored(scored, resumed, {**data.bad, **skipped})


def merge(parts: Sequence[str | Path], out: str | Path) -> Header:
    """Merges the finished shards of one run into one scores file, by line.

    Raises:
        InvalidRequestError: a shard is missing, twice there, unfinished, or of another run.
    """
    paths = [Path(part) for part in parts]
    headers = [read_header(path) for path in paths]
    n = headers[0].shard[1]
    if sorted(h.shard[0] for h in headers) != list(range(1, n + 1)) or any(h.shard[1] != n for h in headers):
        found = ", ".join(f"{h.shard[0]}/{h.shard[1]}" for h in headers)
        raise InvalidRequestError(f"merge: expected each of the shards 1/{n} to {n}/{n} once, got {found}")
    whole = dataclasses.replace(headers[0], shard=(1, 1))
    for path, header in zip(paths, headers):
        _check_same(path, dataclasses.replace(header, shard=(1, 1)), whole)
    part = Path(out).with_name(Path(out).name + ".part")
    count = 0
    with part.open("w", encoding="utf-8") as file:
        file.write(whole.to_json() + "\n")
        for row in heapq.merge(*(_rows(path) for path in paths), key=lambda row: int(row["line"])):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if count != whole.dataset_rows:
        part.unlink()
        raise InvalidRequestError(f"merge: {count} of {whole.dataset_rows} rows are scored: finish the shards first")
    os.replace(part, out)
    return whole


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return (row for _, row in read_lines(path))


def _score_group(
    llm: Llama, group: list[Row], path: Path, skip_bad: bool, judge: Judge | None
) -> Iterator[dict[str, Any]]:
    try:
        yield from score_rows(llm, group, judge=judge)
        return
    except InvalidRequestError:
        pass
    for row in group:  # one of them is the reason: find it
        try:
            yield from score_rows(llm, [row], judge=judge)
        except InvalidRequestError as error:
            if not skip_bad:
                raise InvalidRequestError(
                    f"{path}: line {row.line}: {error} (--skip-bad leaves such rows out)"
                ) from None
            yield skipped_row(row, str(error))


def _open_locked(path: Path) -> IO[bytes]:
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 -- the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InvalidRequestError(f"{path}: is being written by another process; wait for it, or use --shard") from None
    return file


def _resume(file: IO[bytes], path: Path, header: Header) -> tuple[int, int, dict[int, str]]:
    """Leaves `file` at its end, behind the last whole line: (that row's line in the data, rows held, skipped ones)."""
    first = file.readline()
    if not first.endswith(b"\n"):
        if not header.to_json().encode().startswith(first):
            raise InvalidRequestError(f"{path}: exists and is no scores file; choose another -o")
        file.seek(0)
        file.truncate()
        file.write(header.to_json().encode() + b"\n")
        file.flush()
        return 0, 0, {}
    _check_same(path, Header.parse(first, path), header)
    last_line, count, end = 0, 0, file.tell()
    skipped: dict[int, str] = {}
    for text in file:
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if row is None or not text.endswith(b"\n"):
            break  # torn by the kill
        last_line, count, end = int(row["line"]), count + 1, end + len(text)
        if "error" in row:
            skipped[last_line] = str(row["error"])
    file.seek(end)
    file.truncate()
    return last_line, count, skipped


def _check_same(path: Path, found: Header, expected: Header) -> None:
    names = [f.name for f in dataclasses.fields(Header) if getattr(found, f.name) != getattr(expected, f.name)]
    if names:
        raise InvalidRequestError(
            f"{path}: holds scores of another run ({', '.join(names)} differ): choose another -o, or delete it"
        )
