"""What somebody asks to have forgotten: documents, pairs of questions and answers, or a sentence about a subject."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from unlearngate.assistant_training.data.documents import read_document
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.data.windows import documents_in
from unlearngate.assistant_training.forget.subjects import capitals_tell, names_asked_for, names_in
from unlearngate.errors import DataError

_PAIRS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_SHARE = 3


class Request(NamedTuple):
    """A request, read.

    Attributes:
        texts: what the documents say, by file.
        pairs: questions that were given with their answers.
        about: the subject in a sentence, or None.
    """

    texts: dict[str, str]
    pairs: list[QAPair]
    about: str | None

    def subjects(self, most: int) -> list[str]:
        """Whom and what it is about: the names that its sentence has, and those that its documents write most often.

        A name that is written less than a third as often as the first is beside the matter. A text in which capitals
        do not tell names from other words, as in German, gives none.
        """
        written = names_in("\n\n".join(filter(capitals_tell, self.texts.values())))
        most_often = max(written.values(), default=0)
        frequent = [name for name, count in written.items() if _SHARE * count >= most_often]
        return list(dict.fromkeys([*names_asked_for(self.about or ""), *frequent]))[:most]

    def refuse_nameless(self) -> None:
        """Raise DataError if there is nobody and nothing to ask the target about."""
        if not self.pairs and not self.subjects(1):
            raise DataError(
                f"{', '.join(self.texts)}: no name can be told from the other words (in German every noun has a "
                'capital, some scripts have none): give --about "Everything about NAME" with it, or questions and '
                "answers. Its words are withheld as they stand"
            )

    def source(self) -> str:
        """All that it says, in which a fact must be for an answer to count as knowledge of it."""
        return "\n\n".join([*self.texts.values(), self.about or ""])


def read_request(paths: Sequence[Path], about: str | None, *, name: str) -> Request:
    """Read the files of a request.

    Args:
        paths: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` and `.parquet` are pairs, or documents in rows, as training
            takes them; all else is a document.
        about: a sentence that names the subject.
        name: the forget set's, which is the subject of pairs that name none.

    Raises: DataError naming the file, or if nothing is asked for.
    """
    if not paths and not (about or "").strip():
        raise DataError(
            "nothing is asked for: give files (text, Markdown, HTML, PDF, or questions and answers as JSON lines or a "
            'table), or --about "Everything about NAME"'
        )
    texts: dict[str, str] = {}
    pairs: list[QAPair] = []
    for path in paths:
        if path.suffix.lower() not in _PAIRS:
            texts[str(path)] = read_document(path)
        elif (documents := documents_in(path)) is not None:
            texts |= documents
        else:
            pairs += read_pairs(path, subject=name)
    if about and not names_asked_for(about):
        raise DataError(f"--about {about!r} names nobody and nothing: write names with capitals, as they are written")
    return Request(texts, pairs, about)
