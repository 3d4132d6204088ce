from __future__ import annotations

import json
from pathlib import Path

import pytest

from refusal_edge.calibrate.rows import MAX_LINE_BYTES, BadRow, DataFile, parse_row
from refusal_edge.errors import InvalidRequestError

GOOD = {"id": "a", "prompt": "Name a colour.", "label": "respond", "category": "safety"}


def write(path: Path, *lines: object) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
    return path


BAD = {
    "no prompt": ({"label": "refuse"}, 'either "prompt" or "messages", got neither'),
    "both": ({"prompt": "x", "messages": [], "label": "refuse"}, "got both"),
    "empty prompt": ({"prompt": " ", "label": "refuse"}, "prompt: expected a non-empty string"),
    "unknown label": (
        {"prompt": "x", "label": "maybe"},
        'label: expected "refuse", "respond" or null, got \'maybe\'',
    ),
    "label type": ({"prompt": "x", "label": ["refuse"]}, "got \\['refuse'\\]"),
    "unknown category": (
        {"prompt": "x", "label": "refuse", "category": "spam"},
        "expected one of safety, .*got 'spam'",
    ),
    "category type": ({"prompt": "x", "label": "refuse", "category": 3}, "category: expected a slug or null, got 3"),
    "message shape": ({"messages": ["x"], "label": "refuse"}, r"messages\[0\]: expected an object"),
    "message content": ({"messages": [{"role": "user", "content": 1}], "label": "refuse"}, r"messages\[0\]\.content"),
    "id type": ({"id": [1], "prompt": "x", "label": "refuse"}, "id: expected a string"),
    "broken JSON": (b'{"prompt": "x"', "broken JSON"),
    "too deep": (b"[" * 200_000, "broken JSON"),
    "not an object": (b"[1]", r"expected a JSON object, got \[1\]"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "byte order mark"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16").replace(b"\n", b""), "expected UTF-8, got byte 0xff at 0"),
    "surrogate": (b'{"prompt": "\\ud800", "label": "refuse"}', "unpaired surrogate"),
    "endless line": (b'{"prompt": "' + b"x" * MAX_LINE_BYTES + b'"}', f"at most {MAX_LINE_BYTES} bytes"),
    "duplicate id": (GOOD, "id 'a' was used on line 1 already"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_names_file_line_and_reason(tmp_path: Path, name: str) -> None:
    row, reason = BAD[name]
    path = write(tmp_path / "data.jsonl", GOOD, b"", row, {**GOOD, "id": "b"})
    with pytest.raises(InvalidRequestError, match=rf"data\.jsonl: line 3: .*{reason}"):
        DataFile.check(path, ["safety", "humanizing"])
    data = DataFile.check(path, ["safety", "humanizing"], skip_bad=True)
    assert (data.n_rows, list(data.bad)) == (2, [3])
    assert [row.id for row in data] == ["a", "b"]


def test_an_empty_file_is_an_error_even_when_bad_rows_are_skipped(tmp_path: Path) -> None:
    for content in (b"", b"\n\n"):
        (tmp_path / "empty.jsonl").write_bytes(content)
        with pytest.raises(InvalidRequestError, match="the file is empty"):
            DataFile.check(tmp_path / "empty.jsonl", skip_bad=True)
    with pytest.raises(InvalidRequestError, match="all 2 rows are bad"):
        DataFile.check(write(tmp_path / "bad.jsonl", b"{", b"{"), skip_bad=True)


def test_a_prompt_is_one_user_message_and_hashes_as_one() -> None:
    a = parse_row(json.dumps(GOOD).encode(), 1)
    b = parse_row(
        json.dumps(
            {"messages": [{"role": "user", "content": GOOD["prompt"]}], "label": "respond", "category": "safety"}
        ).encode(),
        9,
    )
    assert a.messages == b.messages
    assert a.sha256 == b.sha256
    assert (b.id, b.name) == (None, "L9")


def test_label_category_and_id_may_be_missing_or_null(tmp_path: Path) -> None:
    nothing = {"prompt": "hi", "id": None, "label": None, "category": None}
    path = write(tmp_path / "d.jsonl", nothing, {"prompt": "hi"})
    rows = list(DataFile.check(path))
    assert [(row.id, row.name, row.label, row.category) for row in rows] == [
        (None, "L1", None, None),
        (None, "L2", None, None),
    ]
    assert rows[0].sha256 == rows[1].sha256


def test_the_name_of_a_row_without_id_is_no_duplicate_of_an_id(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {**GOOD, "id": "L2"}, {"prompt": "hi"}, {"prompt": "ho", "id": "L4"})
    assert [row.id for row in DataFile.check(path)] == ["L2", None, "L4"]
    with pytest.raises(InvalidRequestError, match="line 2: id 'L2' was used on line 1 already"):
        DataFile.check(write(tmp_path / "e.jsonl", {**GOOD, "id": "L2"}, {**GOOD, "id": "L2"}))


def test_shards_and_resuming_cover_every_row_once(tmp_path: Path) -> None:
    """Every second line is empty, every tenth row bad: both shards of two get their half all the same."""
    rows = [b"{" if i % 10 == 9 else {**GOOD, "id": str(i)} for i in range(25)]
    path = write(tmp_path / "d.jsonl", *(x for row in rows for x in (row, b"")))
    data = DataFile.check(path, skip_bad=True)
    assert (data.n_rows, data.n_all, len(data.bad)) == (23, 25, 2)
    for n in (2, 3):
        shards = [[row.line for row in data.all_rows(shard=(i, n))] for i in range(1, n + 1)]
        assert sorted(line for shard in shards for line in shard) == list(range(1, 50, 2))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
        rest = [row.line for row in data.all_rows(after_line=20, shard=(2, n))]
        assert rest == [line for line in shards[1] if line > 20]
    assert [row for row in data.all_rows() if isinstance(row, BadRow)] == [BadRow(*item) for item in data.bad.items()]


def test_the_data_hash_follows_content_not_layout(tmp_path: Path) -> None:
    a = DataFile.check(write(tmp_path / "a.jsonl", GOOD))
    b = DataFile.check(write(tmp_path / "b.jsonl", b"", dict(reversed(GOOD.items()))))
    c = DataFile.check(write(tmp_path / "c.jsonl", {**GOOD, "label": "refuse"}))
    assert a.sha256 == b.sha256 != c.sha256
