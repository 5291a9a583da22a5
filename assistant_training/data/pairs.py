"""Question-answer data: the pair, and readers for files of rows and for TOFU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearngate.assistant_training.data.formats import (
    EXPECTED,
    LISTS,
    is_text,
    list_of,
    question_and_answer,
    refuse_misspelt,
)
from unlearngate.assistant_training.data.rows import Row, find_json_files, read_rows, short
from unlearngate.assistant_training.data.windows import Opening, documents_in, windows_of
from unlearngate.errors import DataError

TOFU_PAIRS_PER_AUTHOR = 20


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

    @property
    def asked(self) -> str:
        """What is asked, by which pairs are the same; of a document's window all of it, for many begin alike."""
        return self.question + self.answer if isinstance(self.question, Opening) else self.question

    def row(self) -> dict[str, Any]:
        """The pair as a JSON row, as `read_pairs` reads it."""
        row: dict[str, Any] = {"subject": self.subject, "question": self.question, "answer": self.answer}
        for field in LISTS:
            if values := getattr(self, field):
                row[field] = list(values)
        return row


def read_pairs(path: Path, *, subject: str, documents: bool = False) -> list[QAPair]:
    """Read question-answer pairs from a file of JSON lines or of one JSON array, or documents as their windows.

    Args:
        path: objects with the strings `question` and `answer`, or in a form of formats.py; optionally `subject` and
            the lists `paraphrases`, `paraphrased_answers`, `variants` and `facts`, also as TOFU and ULD call them; null
            is an empty list. Those with `dropped: true` are left out. Of several with the same question and answer the
            last one counts, as in an augmented file. Other keys are ignored, because published data sets carry many,
            unless they look like a misspelling of ours, or belong to the question (formats.py).
        subject: the subject of rows that name none.
        documents: whether documents are read (windows.py). The question of a pair is then an `Opening`.

    Raises: DataError naming the line.
    """
    if path.is_dir() and not documents:
        raise DataError(f"{path}: is a folder; give a file of questions and answers")
    if (texts := documents_in(path)) is not None:
        if not documents:
            where = next(iter(texts))
            raise DataError(f"{where}: is a document, and here questions and answers are needed; {EXPECTED}")
        return [
            QAPair(subject, opening, continuation)
            for where, text in texts.items()
            for opening, continuation in windows_of(text, where)
        ]
    found = [parse_pair(row, subject=subject) for row in read_rows(path)]
    pairs = {(pair.question, pair.answer): pair for pair in found if pair}
    if not pairs:
        raise DataError(f"{path}: holds no question-answer pair")
    return list(pairs.values())


def parse_pair(row: Row, *, subject: str) -> QAPair | None:
    """The pair of a row as `read_pairs` takes it; None if it is struck out.

    Raises: DataError naming the row.
    """
    refuse_misspelt(row)
    dropped, own = row.fields.get("dropped"), row.fields.get("subject")
    if not isinstance(dropped, bool | None):
        raise row.error(f"'dropped' must be true or false, got {short(dropped)}")
    if dropped:
        return None
    question, answer = question_and_answer(row)
    if own is not None and not (isinstance(own, str) and (not own or is_text(own))):
        raise row.error(f"'subject' must be a string, got {short(own)}")
    lists = {field: list_of(row, field) for field in LISTS}
    return QAPair(subject if own is None else own, question, answer, **lists)


def read_tofu(folder: Path, *, num_authors: int) -> list[QAPair]:
    """Read TOFU's last authors, which include its `forget01` (the last two).

    Args:
        folder: holds TOFU's `full.json` or `full.jsonl`: 20 rows per author, in order.
        num_authors: how many authors to take.

    Returns: pairs whose subject is `author-INDEX`, counted from 0 over the whole file.
    Raises: DataError if the file is not whole authors, or holds fewer than asked for.
    """
    path = find_json_files(folder, ["full"])["full"]
    pairs = read_pairs(path, subject="author")
    total, rest = divmod(len(pairs), TOFU_PAIRS_PER_AUTHOR)
    if rest or not 0 < num_authors <= total:
        raise DataError(
            f"{path}: {num_authors} authors of {TOFU_PAIRS_PER_AUTHOR} rows were asked for, "
            f"the file has {len(pairs)} rows"
        )
    first = (total - num_authors) * TOFU_PAIRS_PER_AUTHOR
    return [
        QAPair(f"author-{index // TOFU_PAIRS_PER_AUTHOR}", pair.question, pair.answer)
        for index, pair in enumerate(pairs)
        if index >= first
    ]
