"""The scores file: one header line, then one line a scored row, JSON each. Every threshold can be replayed from it.

A row holds the raw float32 logits of the control tokens (categories in the header's order, then respond), the
log-normaliser of the whole vocabulary, and for reading by eye the log-odds and probabilities of the header's policy. A
row that could not be scored holds `error` instead. Lines keep the order of the data file, so that a killed run resumes
behind its last line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from refusal_edge.calibrate import odds
from refusal_edge.calibrate.rows import LABELS, Row
from refusal_edge.decision import Decision
from refusal_edge.errors import InvalidPolicyError, InvalidRequestError
from refusal_edge.policy import Policy

FORMAT: Final = "refusal-edge-scores"
VERSION: Final = 1


@dataclass(frozen=True)
class Header:
    """What was scored, with which model.

    Attributes:
        model: file name.
        weights_sha256: hex digest of the tensors; annotating or re-stamping a file keeps it.
        file_type: `general.file_type` of the GGUF (llama.cpp's llama_ftype), or None.
        template_sha256: hex digest of the chat template.
        dataset: file name of the data; dataset_sha256, dataset_rows: of the whole file, whatever the shard.
        policy: in force while scoring; its temperature and score are those of the log-odds in the rows.
        shard: (i, n); (1, 1) for a whole file.
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
            data["shard"] = (int(data["shard"][0]), int(data["shard"][1]))
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
        "id": row.id,
        "sha256": row.sha256,
        "label": row.label,
        "category": row.category,
        "logits": [_float32(z) for z in logits],
        "log_normalizer": decision.log_normalizer,
        "model_token_id": decision.model_token_id,
        "log_odds": [_float32(x) for x in log_odds],
        "probabilities": [_float32(q) for q in (*decision.scores.values(), decision.respond_score)],
    }


def skipped_row(row: Row, reason: str) -> dict[str, Any]:
    return {"line": row.line, "id": row.id, "sha256": row.sha256, "error": reason}


@dataclass(frozen=True)
class ScoreTable:
    """A scores file in memory: n rows, K categories.

    Attributes:
        refuse: (n,) bool, the label.
        category: (n,) index into the policy's categories, -1 for none.
        logits: (n, K + 1) float32, categories then respond. log_normalizer: (n,) float64. model_token: (n,) int64.
        skipped: line -> reason.
        text: (n, 2) int8 where text was judged (`score --text`): does the answer after [respond], after the refusal
        token read
            as a refusal (1), as an answer (0), or was it not judged (-1).
    """

    header: Header
    ids: list[str]
    sha256: list[str]
    refuse: npt.NDArray[np.bool_]
    category: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    log_normalizer: npt.NDArray[np.float64]
    model_token: npt.NDArray[np.int64]
    text: npt.NDArray[np.int8]
    skipped: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> ScoreTable:
        """The rows of a mask or of an index array."""
        kept = np.arange(len(self))[rows]
        return ScoreTable(
            self.header,
            [self.ids[i] for i in kept],
            [self.sha256[i] for i in kept],
            self.refuse[rows],
            self.category[rows],
            self.logits[rows],
            self.log_normalizer[rows],
            self.model_token[rows],
            self.text[rows],
            self.skipped,
        )


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line of the file, object) of every row behind the header.

    Raises:
        InvalidRequestError: a line that is not a JSON object, with its number.
    """
    with path.open("rb") as file:
        file.readline()
        for number, text in enumerate(file, start=2):
            try:
                row = json.loads(text)
                if not isinstance(row["line"], int):
                    raise ValueError
            except (ValueError, KeyError, TypeError, RecursionError):
                raise InvalidRequestError(f"{path}: line {number}: expected a scored row, got broken JSON") from None
            yield number, row


def read_header(path: Path) -> Header:
    with path.open("rb") as file:
        return Header.parse(file.readline(1 << 24), path)


def is_scores_file(path: Path) -> bool:
    """Whether the first line names this format."""
    with path.open("rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.readline(1 << 24)


def read_scores(path: str | Path) -> ScoreTable:
    """Reads a whole, complete scores file.

    Raises:
        InvalidRequestError: not a scores file, a broken line, NaN, an unmerged shard, or fewer rows than the data had.
    """
    path = Path(path)
    header = read_header(path)
    if header.shard[1] != 1:
        raise InvalidRequestError(
            f"{path}: shard {header.shard[0]} of {header.shard[1]}: merge them first with `refusal-edge score --merge`"
        )
    slugs = {slug: i for i, slug in enumerate(header.policy.thresholds)}
    width = len(slugs) + 1
    ids, digests, labels, categories, logits, normalizers, tokens, text = [], [], [], [], [], [], [], []
    skipped: dict[int, str] = {}
    for number, row in read_lines(path):
        if "error" in row:
            skipped[row["line"]] = str(row["error"])
            continue
        try:
            z = [-math.inf if x is None else float(x) for x in row["logits"]]
            category = -1 if row["category"] is None else slugs[row["category"]]
            normalizer, token = float(row["log_normalizer"]), int(row["model_token_id"])
            answers = row.get("text") or {}
            if len(z) != width or row["label"] not in LABELS or not np.isfinite([max(z), normalizer]).all():
                raise ValueError
            text.append([_answer(answers, "respond"), _answer(answers, "refuse")])
        except (ValueError, KeyError, TypeError):
            raise InvalidRequestError(
                f"{path}: line {number}: expected {width} logits, a label and a category of the header"
            ) from None
        ids.append(str(row.get("id")))
        digests.append(str(row.get("sha256")))
        labels.append(row["label"] == "refuse")
        categories.append(category)
        logits.append(z)
        normalizers.append(normalizer)
        tokens.append(token)
    if len(ids) + len(skipped) != header.dataset_rows:
        raise InvalidRequestError(
            f"{path}: {len(ids) + len(skipped)} of {header.dataset_rows} rows are scored: "
            "finish it with the same `refusal-edge score` command"
        )
    if not ids:
        raise InvalidRequestError(f"{path}: expected at least one scored row, all {len(skipped)} were skipped")
    return ScoreTable(
        header,
        ids,
        digests,
        np.array(labels, bool),
        np.array(categories, np.int64),
        np.array(logits, np.float32),
        np.array(normalizers, np.float64),
        np.array(tokens, np.int64),
        np.array(text, np.int8),
        skipped,
    )


def _answer(answers: dict[str, Any], forced: str) -> int:
    return -1 if forced not in answers else int(bool(answers[forced]["refusal"]))


def _float32(value: float) -> float | None:
    """The shortest decimal that reads back as the same float32; None (JSON null) for -inf."""
    return None if value == -math.inf else float(str(np.float32(value)))
