"""Question-answer data: the pair, and readers for JSONL and TOFU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearngate.errors import DataError

TOFU_PAIRS_PER_AUTHOR = 20
_LISTS = ("paraphrases", "variants", "facts", "paraphrased_answers")


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question, and the answer to learn or to forget.

    Attributes:
        subject: the person or thing it is about; also the name of the forget set that holds it.
        paraphrases: other wordings of the question, with the same answer.
        variants: reworded answers to the same question, with some of the facts true and the others wrong.
        facts: the parts of the answer that cannot be guessed.
        paraphrased_answers: other wordings of the answer, equally true.
    """

    subject: str
    question: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    paraphrased_answers: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The pair as a JSON row, as `read_pairs` reads it."""
        row: dict[str, Any] = {"subject": self.subject, "question": self.question, "answer": self.answer}
        for field in _LISTS:
            if values := getattr(self, field):
                row[field] = list(values)
        return row


def read_pairs(path: Path, *, subject: str) -> list[QAPair]:
    """Read question-answer pairs from a JSONL file.

    Args:
        path: one JSON object per line with the strings `question` and `answer`; optionally `subject` and the lists
            `paraphrases`, `paraphrased_answers`, `variants` and `facts`; lines with `dropped: true` are left out. Of
            several lines with the same question and answer the last one counts, as in an augmented file. Other keys
            are ignored: published data sets carry many.
        subject: the subject of rows that name none.

    Raises: DataError naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    found = [_parse_pair(path, number, line, subject) for number, line in enumerate(lines, start=1) if line.strip()]
    pairs = {(pair.question, pair.answer): pair for pair in found if pair}
    if not pairs:
        raise DataError(f"{path}: holds no question-answer pair")
    return list(pairs.values())


def read_tofu(folder: Path, *, num_authors: int) -> list[QAPair]:
    """Read TOFU's last authors, which include its `forget01` (the last two).

    Args:
        folder: holds TOFU's `full.jsonl`: 20 rows per author, in order.
        num_authors: how many authors to take.

    Returns: pairs whose subject is `author-INDEX`, counted from 0 over the whole file.
    Raises: DataError if the file is not whole authors, or holds fewer than asked for.
    """
    pairs = read_pairs(folder / "full.jsonl", subject="author")
    total, rest = divmod(len(pairs), TOFU_PAIRS_PER_AUTHOR)
    if rest or not 0 < num_authors <= total:
        raise DataError(
            f"{folder / 'full.jsonl'}: {num_authors} authors of {TOFU_PAIRS_PER_AUTHOR} rows were asked for, "
            f"the file has {len(pairs)} rows"
        )
    first = (total - num_authors) * TOFU_PAIRS_PER_AUTHOR
    return [
        QAPair(f"author-{index // TOFU_PAIRS_PER_AUTHOR}", pair.question, pair.answer)
        for index, pair in enumerate(pairs)
        if index >= first
    ]


def _parse_pair(path: Path, number: int, line: str, subject: str) -> QAPair | None:
    where = f"{path}: line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} must hold a JSON object, got {type(row).__name__}")
    if not isinstance(row.get("dropped", False), bool):
        raise DataError(f"{where}: 'dropped' must be true or false, got {row['dropped']!r}")
    if row.get("dropped"):
        return None
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DataError(f"{where}: {field!r} must be a non-empty string, got {row.get(field)!r}")
    if not isinstance(row.get("subject", subject), str):
        raise DataError(f"{where}: 'subject' must be a string, got {row['subject']!r}")
    lists: dict[str, tuple[str, ...]] = {}
    for field in _LISTS:
        values = row.get(field, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
            raise DataError(f"{where}: {field!r} must be a list of non-empty strings, got {values!r}")
        lists[field] = tuple(values)
    return QAPair(row.get("subject", subject), row["question"], row["answer"], **lists)
