"""The scores file: one header line, then one line a scored row, JSON each. Every threshold can be replayed from it.

A row holds the raw float32 logits of the control tokens (categories in the header's order, then respond), the
log-normaliser of the whole vocabulary, and for reading by eye the log-odds and probabilities of the header's policy.
A row that could not be scored, or not even be read, holds `error` instead. Lines keep the order of the data file, so
that a killed run resumes behind its last line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import odds
from refusal_edge.calibrate.rows import LABELS, BadRow, Row
from refusal_edge.calibrate.texts import Texts
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidPolicyError, InvalidRequestError
from refusal_edge.pins import checked_pins
from refusal_edge.policy import Policy

FORMAT: Final = "refusal-edge-scores"
_LARGEST: Final = float(np.finfo(np.float32).max)
VERSION: Final = 1


@dataclass(frozen=True)
class Header:
    """What was scored, with which model.

    Attributes:
        model: file name.
        weights_sha256: hex digest of the tensors; annotating or re-stamping a file keeps it.
        file_type: `general.file_type` of the GGUF (llama.cpp's llama_ftype), or None.
        template_sha256: hex digest of the chat template.
        dataset: file name of the data; dataset_sha256, dataset_rows: of the whole file, whatever the shard; the rows
            are counted with the bad ones.
        policy: in force while scoring; its temperature and score are those of the log-odds in the rows.
        shard: (i, n); (1, 1) for a whole file.
        calibration: pins of that policy, as in `Stamp.calibration`; None where the model file holds none.
        judge: who read the text behind each forced decision; None: nobody did.
    """

    model: str
    weights_sha256: str
    file_type: int | None
    template_sha256: str
    dataset: str
    dataset_sha256: str
    dataset_rows: int
    policy: Policy
    shard: tuple[int, int] = (1, 1)
    calibration: dict[str, Any] | None = None
    judge: str | None = None
    format: str = FORMAT
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "policy": self.policy.to_dict()}, ensure_ascii=False)

    @classmethod
    def parse(cls, text: bytes, path: Path) -> Header:
        """Raises InvalidRequestError if the line is not the header of a scores file that this release reads."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError
            if data["version"] != VERSION:
                raise InvalidRequestError(
                    f"{path}: scores file version {data['version']!r}, this release reads {VERSION}: score again"
                )
            data["policy"] = Policy.from_dict(data["policy"])
            if data.get("calibration") is not None:
                data["calibration"] = checked_pins(data["calibration"])
            data["shard"] = (int(data["shard"][0]), int(data["shard"][1]))
            if not isinstance(data.get("judge"), (str, type(None))) or not all(
                isinstance(data[name], str)
                for name in ("model", "weights_sha256", "template_sha256", "dataset", "dataset_sha256")
            ):
                raise ValueError
            if type(data["dataset_rows"]) is not int or type(data["file_type"]) not in (int, type(None)):
                raise ValueError
            return cls(**data)
        except InvalidPolicyError as error:
            raise InvalidRequestError(f"{path}: line 1: {error}") from None
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            if isinstance(error, InvalidRequestError):
                raise
            raise InvalidRequestError(
                f"{path}: line 1: expected the header of a scores file; make one with `refusal-edge score`"
            ) from None


def scored_row(row: Row, decision: Decision) -> dict[str, Any]:
    """One line of the file, JSON-ready."""
    logits = [*decision.logits.values(), decision.respond_logit]
    log_odds = odds.logit([*decision.scores.values()])
    return {
        "line": row.line,
        "id": row.name,
        "sha256": row.sha256,
        "label": row.label,
        "category": row.category,
        "logits": [_float32(z) for z in logits],
        "log_normalizer": decision.log_normalizer,
        "model_token_id": decision.model_token_id,
        "log_odds": [_float32(x) for x in log_odds],
        "probabilities": [_float32(q) for q in (*decision.scores.values(), decision.respond_score)],
    }


def skipped_row(bad: BadRow) -> dict[str, Any]:
    return {"line": bad.line, "error": bad.reason}


@dataclass(frozen=True)
class ScoreTable:
    """A scores file in memory, in columns: n rows, K categories, about 130 bytes a row and its id.

    Attributes:
        ids: the row's own, or "L<line>"; for people. sha256: hex digests of the rows.
        refuse: (n,) bool, the label. labelled: (n,) bool; `refuse` is False where there is no label.
        category: (n,) index into the policy's categories, -1 for none.
        logits: (n, K + 1) float32, categories then respond. log_normalizer: (n,) float64. model_token: (n,) int64.
        text: (n, 2) int8 where text was judged (`score --text`): does the answer after [respond], after the refusal
            token read as a refusal (1), as an answer (0), or was it not judged (-1).
        skipped: line -> reason, of the rows that could not be scored.
        n_unlabelled: rows that were left out for want of a label.
    """

    header: Header
    ids: Sequence[str]
    sha256: Sequence[str]
    refuse: npt.NDArray[np.bool_]
    labelled: npt.NDArray[np.bool_]
    category: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    log_normalizer: npt.NDArray[np.float64]
    model_token: npt.NDArray[np.int64]
    text: npt.NDArray[np.int8]
    skipped: dict[int, str] = field(default_factory=dict)
    n_unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> ScoreTable:
        """The rows of a mask or of an index array."""
        kept = np.arange(len(self))[rows]
        columns = ("refuse", "labelled", "category", "logits", "log_normalizer", "model_token", "text")
        return dataclasses.replace(
            self,
            ids=Texts(self.ids[i] for i in kept),
            sha256=Texts(self.sha256[i] for i in kept),
            **{name: getattr(self, name)[kept] for name in columns},
        )


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line of the file, object) of every row behind the header.

    Raises:
        InvalidRequestError: a line that is not a JSON object or stands in the wrong place, with its number.
    """
    with path.open("rb") as file:
        file.readline()
        last_line = 0
        for number, text in enumerate(file, start=2):
            row = parse_line(text)
            if row is None:
                raise InvalidRequestError(f"{path}: line {number}: expected a scored row, got broken JSON")
            if row["line"] <= last_line:
                raise InvalidRequestError(
                    f"{path}: line {number}: expected a data line after {last_line}, got {row['line']}: score again"
                )
            last_line = row["line"]
            yield number, row


def parse_line(text: bytes) -> dict[str, Any] | None:
    """A line behind the header; None if it is not a JSON object that names a line of the data."""
    try:
        row = json.loads(text)
        return row if type(row["line"]) is int else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_header(path: Path) -> Header:
    with path.open("rb") as file:
        return Header.parse(file.readline(1 << 24), path)


def is_scores_file(path: Path) -> bool:
    """Whether the first line names this format."""
    with path.open("rb") as file:
        first = file.readline(1 << 24)
    try:
        return bool(json.loads(first)["format"] == FORMAT)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def read_scores(path: str | Path, *, unlabelled: bool = False) -> ScoreTable:
    """Reads a whole, complete scores file.

    Args:
        unlabelled: keep the rows without a label. Whoever does must look at `labelled`: they are not benign rows.

    Raises:
        InvalidRequestError: not a scores file, a broken line, NaN, an unmerged shard, fewer rows than the data had, or
            no row left.
    """
    path = Path(path)
    header = read_header(path)
    if header.shard[1] != 1:
        raise InvalidRequestError(
            f"{path}: shard {header.shard[0]} of {header.shard[1]}: merge them first with `refusal-edge score --merge`"
        )
    columns = _Columns(header)
    skipped: dict[int, str] = {}
    n_unlabelled = 0
    for number, row in read_lines(path):
        if "error" in row:
            skipped[row["line"]] = str(row["error"])
        elif row.get("label") is None and not unlabelled:
            n_unlabelled += 1
        else:
            try:
                columns.append(row)
            except (ValueError, KeyError, TypeError, OverflowError):
                raise InvalidRequestError(
                    f"{path}: line {number}: expected {columns.width} logits, a label and a category of the header"
                    + ", and two judged texts" * (header.judge is not None)
                ) from None
    n_rows = len(columns.ids) + len(skipped) + n_unlabelled
    if n_rows != header.dataset_rows:
        raise InvalidRequestError(
            f"{path}: {n_rows} of {header.dataset_rows} rows are scored: "
            "finish it with the same `refusal-edge score` command"
        )
    if not columns.ids:
        raise InvalidRequestError(
            f"{path}: expected at least one row to use, got {len(skipped)} bad ones and {n_unlabelled} without a label"
        )
    return columns.table(skipped, n_unlabelled)


class _Columns:
    """The rows of a scores file, appended one by one to arrays of numbers."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.slugs = {slug: i for i, slug in enumerate(header.policy.thresholds)}
        self.width = len(self.slugs) + 1
        self.ids, self.sha256 = Texts(), Texts()
        self.labels, self.texts = array("b"), array("b")
        self.categories, self.tokens = array("q"), array("q")
        self.logits, self.normalizers = array("f"), array("d")

    def append(self, row: dict[str, Any]) -> None:
        """Raises ValueError, KeyError, TypeError or OverflowError if the row is malformed."""
        numbers = [-math.inf if x is None else x for x in row["logits"]]
        normalizer, token_id = row["log_normalizer"], row["model_token_id"]
        if type(token_id) is not int or not all(type(x) in (int, float) for x in (*numbers, normalizer)):
            raise ValueError
        z = np.array(numbers, np.float64)
        if z.shape != (self.width,) or not np.isfinite([z.max(), normalizer]).all():
            raise ValueError
        if np.abs(z[np.isfinite(z)]).max() > _LARGEST:
            raise ValueError
        z = z.astype(np.float32)
        self.ids.append(str(row.get("id")))
        self.sha256.append(str(row.get("sha256")))
        self.labels.append(-1 if row.get("label") is None else LABELS.index(row["label"]))
        self.categories.append(-1 if row["category"] is None else self.slugs[row["category"]])
        self.logits.frombytes(z.tobytes())
        self.normalizers.append(normalizer)
        self.tokens.append(token_id)
        self.texts.extend(_answers(row.get("text"), self.header.judge is not None))

    def table(self, skipped: dict[int, str], n_unlabelled: int) -> ScoreTable:
        labels = np.frombuffer(self.labels, np.int8)
        return ScoreTable(
            header=self.header,
            ids=self.ids,
            sha256=self.sha256,
            refuse=labels == LABELS.index("refuse"),
            labelled=labels >= 0,
            category=np.frombuffer(self.categories, np.int64),
            logits=np.frombuffer(self.logits, np.float32).reshape(-1, self.width),
            log_normalizer=np.frombuffer(self.normalizers, np.float64),
            model_token=np.frombuffer(self.tokens, np.int64),
            text=np.frombuffer(self.texts, np.int8).reshape(-1, 2),
            skipped=skipped,
            n_unlabelled=n_unlabelled,
        )


def _answers(text: Any, judged: bool) -> tuple[int, int]:
    """Whether the answers after [respond] and after the refusal token refuse; -1 where nobody judged."""
    if not judged:
        return -1, -1
    respond, refuse = text["respond"]["refusal"], text["refuse"]["refusal"]
    if not (isinstance(respond, bool) and isinstance(refuse, bool)):
        raise ValueError
    return int(respond), int(refuse)


def _float32(value: float) -> float | None:
    """The shortest decimal that reads back as the same float32; None (JSON null) for -inf."""
    return None if value == -math.inf else float(str(np.float32(value)))
