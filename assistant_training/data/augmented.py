"""The files that augmentation writes: JSON lines, one per pair, and beside them a page for people to review.

A line is written at once and never changed, so an interrupted run can resume. `read_pairs` can read the file too;
`read_augmented` returns the pairs in the order of the run's input.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from unlearngate.assistant_training.data.formats import is_text, refuse_misspelt
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.rewording import Reply, Wanted, normalise
from unlearngate.assistant_training.data.rows import Row, find_json_files, read_rows
from unlearngate.errors import DataError

Item = tuple[int, str, QAPair]  # index, key, pair
_Object = TypeAdapter(dict[str, Any])


class AugmentedRow(BaseModel):
    """One line of an augmented file. A person strikes it out with `"dropped": true`."""

    model_config = ConfigDict(frozen=True)

    key: str = ""  # digest of the pair and of the settings that change the result
    index: int = 0  # of the pair in the run's input
    source: str = ""  # the model's name, or "offline"
    subject: str = ""
    question: str = ""
    answer: str = ""
    paraphrases: tuple[str, ...] = ()
    paraphrased_answers: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    dropped: bool = False

    def pair(self, of: QAPair | None = None) -> QAPair:
        """The given pair (or the row's own) with the row's rewordings and wrong answers."""
        of = of or QAPair(self.subject, self.question, self.answer, facts=self.facts)
        return replace(
            of,
            paraphrases=self.paraphrases,
            paraphrased_answers=self.paraphrased_answers,
            variants=self.variants,
        )


class Run:
    """The pairs that an augmented file still lacks, and its only writer. Counts: paraphrases, wrong answers."""

    def __init__(self, pairs: Sequence[QAPair], out: Path, source: str, settings: Any, counts: tuple[int, int]) -> None:
        if min(counts) < 0 or not sum(counts):
            raise DataError(f"nothing to ask for: {counts[0]} paraphrases and {counts[1]} perturbed answers")
        self.out, self.source, self.counts = out, source, counts
        self.rows, self.notes = _mend(out)
        self.num_lines = out.read_bytes().count(b"\n")
        items: dict[str, Item] = {}
        for index, pair in enumerate(pairs):
            key = digest([pair.question, pair.answer, pair.facts, source, settings, self.counts])
            items.setdefault(key, (index, key, pair))
        self.items = list(items.values())
        done = {row.key for row in self.rows.values()}
        self.pending = [item for item in self.items if item[1] not in done]
        self.repeated = len(pairs) - len(self.items)
        self.failed: list[tuple[QAPair, str]] = []
        self.added = 0
        self.taken: dict[str, str] = {}
        for pair in pairs:
            self._take(pair.question, (pair.question, *pair.paraphrases))
        for row in self.rows.values():
            self._take(row.question, () if row.dropped else row.paraphrases)

    def wanted(self, item: Item) -> Wanted:
        """The rules that a reply about the pair must meet."""
        return Wanted(item[2], *self.counts, self.taken)

    def add(self, item: Item, reply: Reply) -> None:
        """Write the pair's line; it is on disk when this returns."""
        index, key, pair = item
        row = AugmentedRow(
            key=key,
            index=index,
            source=self.source,
            subject=pair.subject,
            question=pair.question,
            answer=pair.answer,
            paraphrases=(*pair.paraphrases, *reply.paraphrased_questions),
            paraphrased_answers=(*pair.paraphrased_answers, *reply.paraphrased_answers),
            variants=(*pair.variants, *reply.perturbed_answers),
            facts=pair.facts,
        )
        with self.out.open("ab") as file:
            file.write(json.dumps(row.model_dump(mode="json", exclude_defaults=True)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.num_lines += 1
        self.rows[self.num_lines] = row
        self._take(pair.question, row.paraphrases)
        self.added += 1

    def fail(self, item: Item, reason: str) -> None:
        """Give up the pair for this run."""
        self.failed.append((item[2], reason))

    @property
    def review(self) -> Path:
        """The page for people."""
        return self.out.with_name(f"{self.out.name}.review.md")

    def write_review(self) -> None:
        """Write the page: failed pairs first, then every pair, by the last of its lines."""
        lines = {(row.question, row.answer): (n, row) for n, row in self.rows.items() if not row.dropped}
        missing = len(self.pending) - self.added - len(self.failed)
        name = _plain(self.out.name)
        text = [
            f"# {name}: {len(lines)} pairs augmented, {len(self.failed)} failed, {missing} not asked yet",
            f'To strike a pair out, put `"dropped": true,` behind the `{{` of its line in {name}; '
            "to strike out one text, delete it there.",
        ]
        for pair, reason in self.failed:
            text += [f"## FAILED: {_plain(pair.question)}", _plain(pair.answer), f"Why: {_plain(reason)}"]
        for number, row in lines.values():
            text += [f"## {_plain(row.question)}", _plain(row.answer), f"Line {number}, from {_plain(row.source)}"]
            for title, values in (
                ("Question, reworded", row.paraphrases),
                ("Answer, reworded", row.paraphrased_answers),
                ("Answer, wrong", row.variants),
            ):
                if values:
                    text.append("\n".join([f"{title}:", "", *(f"- {_plain(value)}" for value in values)]))
        self.review.write_text("\n\n".join(text) + "\n", encoding="utf-8")

    def _take(self, question: str, wordings: Iterable[str]) -> None:
        for wording in wordings:
            self.taken.setdefault(normalise(wording), normalise(question))


def read_augmented(path: Path, pairs: Sequence[QAPair] | None = None) -> list[QAPair]:
    """Read an augmented file without its struck-out lines; the last line of a pair counts.

    Args:
        path: what `augment` or `augment_offline` wrote.
        pairs: the run's input: all of it is returned, in order, failed and struck-out pairs unchanged. None returns
            only the pairs in the file, in the order of the run's input.

    Raises: DataError naming the line.
    """
    rows = {(row.question, row.answer): row for row in _load(path)[0].values() if not row.dropped}
    if pairs is None:
        ordered = sorted(rows.values(), key=lambda row: row.index)
        return [row.pair() for row in ordered]
    found = [(pair, rows.get((pair.question, pair.answer))) for pair in pairs]
    return [row.pair(pair) if row else pair for pair, row in found]


def read_uld_augmentation(folder: Path, name: str, pairs: Sequence[QAPair]) -> tuple[list[QAPair], list[str]]:
    """Attach ULD's released augmentation of TOFU to TOFU's forget pairs, all of it, unchecked.

    Args:
        folder: holds NAME_paraphrase.jsonl and NAME_perturb.jsonl, or .json.
        name: forget01, forget05 or forget10. The perturb files of all three hold forget10's pairs.
        pairs: TOFU's forget pairs.

    Returns: every pair, in order; a sentence for each line that matches no pair and each pair that lacks something.
    Raises: DataError naming the line.
    """
    columns = {"paraphrase": ("paraphrased_questions", "paraphrased_answers"), "perturb": ("perturbed_answers",)}
    files = find_json_files(folder, [f"{name}_{kind}" for kind in columns])
    asked = {(pair.question, pair.answer) for pair in pairs}
    found: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {key: {} for key in asked}
    notes = []
    for kind, names in columns.items():
        for row, texts in _rows(files[f"{name}_{kind}"], names):
            if (key := (texts["question"], texts["answer"])) in found:
                for column in names:
                    found[key][column] = tuple(dict.fromkeys((*found[key].get(column, ()), *texts[column])))
            else:
                notes.append(f"{row.where} is about no pair: {texts['question']}")
    full: list[QAPair] = []
    for pair in pairs:
        texts = found[pair.question, pair.answer]
        lacking = [column for names in columns.values() for column in names if not texts.get(column)]
        notes += [f"{name} has no {column} for: {pair.question}" for column in lacking]
        attached = AugmentedRow(
            paraphrases=(*pair.paraphrases, *texts.get("paraphrased_questions", ())),
            paraphrased_answers=(*pair.paraphrased_answers, *texts.get("paraphrased_answers", ())),
            variants=(*pair.variants, *texts.get("perturbed_answers", ())),
        )
        full.append(attached.pair(pair))
    return full, notes


def digest(value: Any) -> str:
    """A digest that identifies a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _plain(text: str) -> str:
    """Text on one line, escaped for Markdown."""
    return re.sub(r"([\\`*_<>\[\]#|~])", r"\\\1", " ".join(text.split()))


def _mend(path: Path) -> tuple[dict[int, AugmentedRow], list[str]]:
    """Prepare a file for appending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    rows, size, notes = _load(path)
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(max(0, size - 1))
        if size and file.read(1) != b"\n":
            file.write(b"\n")
    return rows, notes


def _load(path: Path) -> tuple[dict[int, AugmentedRow], int, list[str]]:
    """An augmented file's rows by line number, the bytes of its complete lines, and a note on what was left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    rows: dict[int, AugmentedRow] = {}
    size = 0
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                rows[number] = _parse_row(f"{path}: line {number}", line.removeprefix(codecs.BOM_UTF8))
        except ValidationError as error:
            first = error.errors()[0]
            if number == len(lines) and first["type"] == "json_invalid":
                return rows, size, [f"{path}: line {number} was only half written, and its pair counts as not asked"]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{path}: line {number}: {where} {first['msg']}; mend the line or delete it") from None
        size += len(line) + (number < len(lines))
    return rows, size, []


def _parse_row(where: str, line: bytes) -> AugmentedRow:
    """Null stands for a field's default. Raises: pydantic's ValidationError; DataError for a misspelt key."""
    fields = _Object.validate_json(line)
    refuse_misspelt(Row(where, fields))
    return AugmentedRow.model_validate({name: value for name, value in fields.items() if value is not None})


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Rows with a question, an answer and the columns, which are lists of strings."""
    for row in read_rows(path):
        lists = {name: row.fields.get(name) or [] for name in columns}
        if missing := [name for name in columns if name not in row.fields or not isinstance(lists[name], list)]:
            raise row.error(f"is not ULD's augmentation: {' and '.join(missing)} must be a list")
        texts = {name: row.fields.get(name) for name in ("question", "answer")}
        if not all(is_text(text) for text in (*texts.values(), *(one for own in lists.values() for one in own))):
            raise row.error("every text must be a non-empty string")
        yield row, {**texts, **lists}
