"""A data file through a model into a scores file: in constant memory, resumable, in shards that merge."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from refusal_edge.calibrate.rows import MAX_LINE_BYTES, BadRow, DataFile, Row
from refusal_edge.calibrate.scorefile import Header, parse_line, read_header, read_lines, scored_row, skipped_row
from refusal_edge.errors import InvalidRequestError, RefusalEdgeError
from refusal_edge.gguf_file import read_gguf
from refusal_edge.keys import Stamp
from refusal_edge.pins import template_sha256

if TYPE_CHECKING:
    from refusal_edge.judge import Judge
    from refusal_edge.llama import Llama

GROUP: Final = 64
_BLOCK: Final = 1 << 22

Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class Scored:
    """What a run did: rows scored now, scored rows that were there already, and bad rows (line -> reason)."""

    scored: int
    resumed: int
    skipped: dict[int, str]


def header_for(llm: Llama, data: DataFile, shard: tuple[int, int] = (1, 1), judge: Judge | None = None) -> Header:
    """The header of scores of `data` by `llm`; hashes the model's tensors, which reads the whole file."""
    file_type = llm.metadata.get("general.file_type", "")
    return Header(
        model=Path(llm.model_path).name,
        weights_sha256=weights_sha256(llm.model_path),
        file_type=int(file_type) if file_type.isdecimal() else None,
        template_sha256=template_sha256(llm.metadata.get("tokenizer.chat_template", "")),
        dataset=data.path.name,
        dataset_sha256=data.sha256,
        dataset_rows=data.n_all,
        policy=llm.policy,
        shard=shard,
        judge=None if judge is None else judge.name,
        calibration=_calibration(llm),
    )


def _calibration(llm: Llama) -> dict[str, Any] | None:
    """The pins of the file's own policy; None where another one is in force."""
    stamp = Stamp.from_kv(llm.metadata)
    return stamp.calibration if llm.policy == stamp.policy else None


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


def score_rows(llm: Llama, rows: Sequence[Row], *, judge: Judge | None = None) -> Iterator[dict[str, Any]]:
    """Scored rows in order, JSON-ready: all decided at once, at the first.

    With a judge each row also gets `text`: what the model writes after each decision, and whether that is a refusal.

    Raises:
        InvalidRequestError: a row that the model cannot take, say over the context; the message does not say which.
        RefusalEdgeError: the judge failed.
    """
    decisions = llm.decide_batch([row.messages for row in rows])
    for row, decision in zip(rows, decisions):
        line = scored_row(row, decision)
        if judge is not None:
            from refusal_edge.judge import forced_texts

            line["text"] = forced_texts(llm, row.messages, judge)
        yield line


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
    """Scores what `out` does not hold yet; each row is in the file before the next is judged, and stays there.

    Args:
        skip_bad: rows that the model cannot take are written with their reason, instead of ending the run. Those that
            `data` has found to be bad always are.

    Raises:
        InvalidRequestError: such a row (file, line, reason), or an `out` of another model, data set, policy, judge or
            shard.
        RefusalEdgeError: the judge failed (file, line, reason).
    """
    out = Path(out)
    header = header_for(llm, data, shard, judge)
    total = len(range(shard[0] - 1, data.n_all, shard[1]))
    with _open_locked(out) as file:
        last_line, resumed, skipped = _resume(file, out, header)
        _check_no_hole(out, data, shard, last_line, resumed + len(skipped))
        rows = data.all_rows(last_line, shard)
        scored = 0
        progress(resumed + len(skipped), total)
        while group := list(islice(rows, GROUP)):
            for line in _score_group(llm, group, data.path, skip_bad, judge):
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                file.flush()
                if "error" in line:
                    skipped[line["line"]] = line["error"]
                else:
                    scored += 1
                progress(resumed + scored + len(skipped), total)
    return Scored(scored, resumed, skipped)


def merge(parts: Sequence[str | Path], out: str | Path, *, force: bool = False) -> Header:
    """Merges the finished shards of one run into one scores file, by line.

    Args:
        force: replace `out` if it exists.

    Raises:
        InvalidRequestError: a shard is missing, twice there, unfinished, of another run, or `out` itself.
        ConversionError: `out` exists and is not to be replaced, or cannot be written.
    """
    from refusal_edge.convert.partfile import part_file, part_path

    out, paths = Path(out), [Path(part) for part in parts]
    for target in (out, part_path(out)):
        if target.exists() and any(target.samefile(path) for path in paths):
            raise InvalidRequestError(f"merge: {target} is one of the shards, writing {out} would destroy it")
    headers = [read_header(path) for path in paths]
    n = headers[0].shard[1]
    if sorted(h.shard[0] for h in headers) != list(range(1, n + 1)) or any(h.shard[1] != n for h in headers):
        found = ", ".join(f"{h.shard[0]}/{h.shard[1]}" for h in headers)
        raise InvalidRequestError(f"merge: expected each of the shards 1/{n} to {n}/{n} once, got {found}")
    whole = dataclasses.replace(headers[0], shard=(1, 1))
    for path, header in zip(paths, headers):
        _check_same(path, dataclasses.replace(header, shard=(1, 1)), whole)
    with part_file(out, force=force) as (descriptor, _), open(descriptor, "wb", closefd=False) as file:
        file.write(whole.to_json().encode() + b"\n")
        count = 0
        last_line = 0
        for row in heapq.merge(*(_rows(path) for path in paths), key=lambda row: int(row["line"])):
            if row["line"] == last_line:
                raise InvalidRequestError(f"merge: two shards hold data line {last_line}: score one of them again")
            last_line = row["line"]
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
        file.flush()
        if count != whole.dataset_rows:
            raise InvalidRequestError(
                f"merge: {count} of {whole.dataset_rows} rows are scored: finish the shards first"
            )
    return whole


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return (row for _, row in read_lines(path))


def _score_group(
    llm: Llama, group: list[Row | BadRow], path: Path, skip_bad: bool, judge: Judge | None
) -> Iterator[dict[str, Any]]:
    """A line of the scores file for each row, in order."""
    lines = _score_good(llm, [row for row in group if isinstance(row, Row)], path, skip_bad, judge)
    for row in group:
        yield skipped_row(row) if isinstance(row, BadRow) else next(lines)


def _score_good(
    llm: Llama, rows: list[Row], path: Path, skip_bad: bool, judge: Judge | None
) -> Iterator[dict[str, Any]]:
    done = 0
    try:
        for line in score_rows(llm, rows, judge=judge):
            yield line
            done += 1
        return
    except InvalidRequestError:
        pass  # one of the others is the reason: find it
    except RefusalEdgeError as error:
        raise _located(error, path, rows[done], judge) from error
    for row in rows[done:]:
        try:
            yield from score_rows(llm, [row], judge=judge)
        except InvalidRequestError as error:
            if not skip_bad:
                raise InvalidRequestError(
                    f"{path}: line {row.line}: {error} (--skip-bad leaves such rows out)"
                ) from None
            yield skipped_row(BadRow(row.line, str(error)))
        except RefusalEdgeError as error:
            raise _located(error, path, row, judge) from error


def _located(error: RefusalEdgeError, path: Path, row: Row, judge: Judge | None) -> RefusalEdgeError:
    """With a judge it is the row whose text was judged; without, the batch does not tell which row it was."""
    if judge is None:
        return error
    return RefusalEdgeError(f"{path}: line {row.line}: {error} (the rows before it are kept: run it again to go on)")


def _open_locked(path: Path) -> IO[bytes]:
    if path.exists() and not path.is_file():
        raise InvalidRequestError(f"{path} is not a regular file; give the name of the file to write")
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 -- the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InvalidRequestError(f"{path}: is being written by another process; wait for it, or use --shard") from None
    return file


def _resume(file: IO[bytes], path: Path, header: Header) -> tuple[int, int, dict[int, str]]:
    """Leaves `file` behind its last whole line: (that row's line in the data, scored rows held, bad ones)."""
    first = file.readline(MAX_LINE_BYTES)
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
        if not text.endswith(b"\n"):
            break  # torn by the kill
        row = parse_line(text)
        if row is None or row["line"] <= last_line:
            raise InvalidRequestError(f"{path}: broken behind data line {last_line}: choose another -o, or delete it")
        last_line, end = row["line"], end + len(text)
        if "error" in row:
            skipped[last_line] = str(row["error"])
        else:
            count += 1
    file.seek(end)
    file.truncate()
    return last_line, count, skipped


def _check_no_hole(path: Path, data: DataFile, shard: tuple[int, int], last_line: int, held: int) -> None:
    """Rows are written in order, so what is held are the first ones of the shard."""
    expected = data.n_rows_up_to(last_line, shard)
    if held != expected:
        raise InvalidRequestError(
            f"{path}: holds {held} of the {expected} rows up to data line {last_line}: choose another -o, or delete it"
        )


def _check_same(path: Path, found: Header, expected: Header) -> None:
    """File names may differ: what they hold is compared by hash."""
    names = [
        f.name
        for f in dataclasses.fields(Header)
        if f.name not in ("model", "dataset") and getattr(found, f.name) != getattr(expected, f.name)
    ]
    if names == ["judge"]:
        raise InvalidRequestError(
            f"{path}: holds scores {_judged(found)}, this run makes them {_judged(expected)}: "
            "choose another -o, or delete it to score every row anew"
        )
    if names:
        raise InvalidRequestError(
            f"{path}: holds scores of another run ({', '.join(names)} differ): choose another -o, or delete it"
        )


def _judged(header: Header) -> str:
    return "without texts" if header.judge is None else f"with texts judged by {header.judge}"
