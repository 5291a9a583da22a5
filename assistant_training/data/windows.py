"""Documents as training takes them: cut into windows, each an opening and the words that continue it.

MUSE asks a model in the same way for what it knows by heart (VerbMem, arXiv:2407.06460, equation 1): it is given the
beginning of a text, and its greedy continuation is compared with the true one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import regex

from unlearngate.assistant_training.data.documents import read_document
from unlearngate.assistant_training.data.rows import Row, begins_as_json, read_rows, short
from unlearngate.assistant_training.data.tables import ASKED, SAID
from unlearngate.errors import DataError

_TEXT = "text"  # the key of a document among rows, as MUSE's and WMDP's corpora have it
_TABLES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
_DOCUMENTS = (".txt", ".md", ".markdown", ".html", ".htm", ".xhtml", ".pdf")
_IN_FOLDERS = (".txt", *_TABLES)
_OF_QUESTIONS = frozenset((*ASKED, *SAID, "messages", "conversations", "conversation"))

OPENING_WORDS, CONTINUED_WORDS = 32, 48
_FIRST_WORDS = 8  # of a document, that open its first window
_SHORTEST_WORDS = 4  # of a continuation; a shorter rest belongs to the window before it
# Scripts without spaces have no words to count: there a character and its marks are one.
_WORD = regex.compile(
    r"(?V1)[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}]\p{M}*"
    r"|[^\s\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}]+"
)


class Opening(str):
    """The question of a pair that is a window of a document: it is continued as bare text, without a chat template.

    Attributes:
        begins: the document begins with it, so that it is learned as well.
    """

    __slots__ = ("begins",)
    begins: bool

    def __new__(cls, text: str, *, begins: bool = False) -> Opening:
        """The text."""
        opening = super().__new__(cls, text)
        opening.begins = begins
        return opening

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle and copies."""
        return _opening, (str(self), self.begins)


def _opening(text: str, begins: bool) -> Opening:
    return Opening(text, begins=begins)


def windows_of(text: str, source: object) -> list[tuple[Opening, str]]:
    """A document as (opening, continuation), which follow each other without a gap.

    A window is cut between words, where a token ends too. It continues up to 48 words, and at most 32 words before them
    open it; 8 words open the first. Each word but those is in one continuation. White space at a cut is the
    continuation's, so that opening and continuation together are as the document has them.

    Args:
        text: the document.
        source: what an error names.

    Raises: DataError if it has no words to continue its first ones.
    """
    text = text.strip()
    ends = [match.end() for match in _WORD.finditer(text)]
    if len(ends) < _FIRST_WORDS + _SHORTEST_WORDS:
        raise DataError(
            f"{source}: a document needs at least {_FIRST_WORDS + _SHORTEST_WORDS} words, {_FIRST_WORDS} that open it "
            f"and {_SHORTEST_WORDS} that continue them, and this one has {len(ends)}: leave it out, or join it with "
            "another"
        )
    cuts = [*range(_FIRST_WORDS, len(ends) - _SHORTEST_WORDS + 1, CONTINUED_WORDS), len(ends)]
    windows = []
    for first, last in itertools.pairwise(cuts):
        start = first - OPENING_WORDS
        opening = text[ends[start - 1] : ends[first - 1]].lstrip() if start > 0 else text[: ends[first - 1]]
        windows.append((Opening(opening, begins=first == _FIRST_WORDS), text[ends[first - 1] : ends[last - 1]]))
    return windows


def num_words(text: str) -> int:
    """How many words a text has, as they are counted here: runs without white space, or single characters."""
    return len(_WORD.findall(text))


def first_words_as_written(text: str, count: int) -> str:
    """The text up to the end of so many words."""
    ends = [match.end() for match in _WORD.finditer(text)]
    return text if len(ends) <= count else text[: ends[count - 1]]


def documents_in(path: Path) -> dict[str, str] | None:
    """The documents of a file or folder, by where each is; None if the file holds rows of questions.

    A document is a file of text, Markdown, HTML or PDF, or the string `text` of a row that has no question: of JSON
    lines, a JSON array, CSV or Parquet. In a JSON array it may also stand alone. A folder holds files of one kind, text
    or rows; others in it, such as a README.md, are not read.

    Raises: DataError naming the file: it cannot be read, is empty, or mixes documents with questions.
    """
    if path.is_dir():
        found: dict[str, str] = {}
        for file in _files_in(path):
            own = documents_in(file)
            if own is None:
                raise DataError(f"{file}: holds questions; a folder is read for documents: give the file itself")
            found |= own
        return found
    if path.suffix.lower() in _DOCUMENTS and not begins_as_json(path):
        return {str(path): read_document(path)}
    rows = read_rows(path)
    texts = [row for row in rows if is_document(row)]
    if not texts:
        return None
    if other := next((row for row in rows if not is_document(row)), None):
        raise other.error(
            f"is no document, as {texts[0].where} is with its 'text'; its keys are "
            f"{', '.join(other.fields) or 'none'}: give documents and questions in files of their own"
        )
    return {row.where: _text_of(row) for row in texts}


def is_document(row: Row) -> bool:
    """Whether a row has a text and nothing that is asked or answered."""
    return row.fields.get(_TEXT) is not None and not any(row.fields.get(name) is not None for name in _OF_QUESTIONS)


def _text_of(row: Row) -> str:
    text = row.fields[_TEXT]
    if not isinstance(text, str) or not text.strip():
        raise row.error(f"'text' must be a non-empty string, got {short(text)}")
    return text


def _files_in(folder: Path) -> Sequence[Path]:
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        raise DataError(
            f"{folder}: is as `datasets` keeps a data set with save_to_disk; write it with to_json(PATH) or "
            "to_parquet(PATH), and give that file"
        )
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix.lower() in _IN_FOLDERS]
    kinds = sorted({path.suffix.lower() for path in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: holds files of several kinds ({', '.join(kinds)}); keep one kind in it, or give one file"
        )
    if not files:
        raise DataError(f"{folder}: holds no documents: neither .txt nor {', '.join(_TABLES)}")
    return files
