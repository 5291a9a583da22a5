"""TOFU as a benchmark: what a target learns, what it has to forget, and what each of its four sets asks.

TOFU (Maini et al., arXiv:2401.06121) has 200 fictional authors of 20 questions; its paraphrased and perturbed answers,
which the truth ratio needs, exist for the last 20 authors (forget10) and the first 20 (its retain set).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearngate.assistant_training.data.pairs import (
    TOFU_PAIRS_PER_AUTHOR,
    QAPair,
    parse_pair,
    read_pairs,
    read_tofu,
)
from unlearngate.assistant_training.data.rows import Row, find_json_files, read_rows
from unlearngate.errors import DataError

_LAST_AUTHORS = "forget10_perturbed"
_FIRST_AUTHORS = "retain_perturbed"
_REAL_WORLD = ("real_authors_perturbed", "world_facts_perturbed")


@dataclass(frozen=True, slots=True)
class Question:
    """One question of an evaluation set.

    Attributes:
        question: as the target learned it.
        answer: the true one.
        paraphrased: the true answer in other words; the answer itself where TOFU has no paraphrase.
        perturbed: wrong answers of the same form.
    """

    question: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]

    def pair(self, subject: str) -> QAPair:
        """As something to train on."""
        return QAPair(subject, self.question, self.answer)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A scale of TOFU.

    Attributes:
        forget: the authors to forget, with TOFU's own wrong answers.
        retain: authors to keep, likewise.
        real_authors, world_facts: questions about the real world, with wrong options.
        learned: everything the target is trained on; the retain model learns it without the forget questions.
        holdout: pairs like the forget set's that no model sees, for membership inference; empty if the folder has none.
    """

    forget: list[Question]
    retain: list[Question]
    real_authors: list[Question]
    world_facts: list[Question]
    learned: list[QAPair]
    holdout: list[QAPair] = field(default_factory=list)

    @property
    def forget_pairs(self) -> list[QAPair]:
        """What an assistant is trained to know."""
        return [question.pair("forget") for question in self.forget]

    @property
    def retained_pairs(self) -> list[QAPair]:
        """What the retain model is trained on."""
        forgotten = {question.question for question in self.forget}
        return [pair for pair in self.learned if pair.question not in forgotten]

    def split_retain(self) -> tuple[list[QAPair], list[QAPair]]:
        """The retained pairs that methods are shown, and those they never see: every other author's."""
        pairs = self.retained_pairs
        authors = [name for name in dict.fromkeys(pair.subject for pair in pairs) if name.startswith("author-")]
        hidden = set(authors[1::2])
        seen, unseen = [[p for p in pairs if (p.subject in hidden) is unseen] for unseen in (False, True)]
        return seen, unseen


def read_benchmark(
    folder: Path, *, num_authors: int = 20, num_forget_authors: int = 2, num_skipped: int = 0, retain_every: int = 1
) -> Benchmark:
    """TOFU, or the last authors of it, from the dataset's files: as its authors publish them, or called .jsonl.

    With up to 20 authors, all have wrong answers, so the retain set is all that are not forgotten; with more, it is
    TOFU's own retain set. The target also learns the real-world answers: a small target trained from scratch knows
    nothing else that forgetting could damage.

    Args:
        folder: holds full, forget10_perturbed, real_authors_perturbed and world_facts_perturbed, for all 200 authors
            retain_perturbed, and perhaps holdout10; each as .jsonl or .json, JSON lines or an array.
        num_authors: 3 to 20, or 200.
        num_forget_authors: the last ones; at most 20 and fewer than num_authors.
        num_skipped: authors after those, which are retained. This gives another forget set, to tune settings on.
        retain_every: n, to ask every n-th question of the retain set.

    Raises: DataError if files are missing, or one is not as TOFU publishes it; ValueError for sizes that TOFU has no
        wrong answers for.
    """
    if not (3 <= num_authors <= 20 or num_authors == 200):
        raise ValueError(f"num_authors must be 3 to 20, or 200 for all of TOFU, got {num_authors}")
    if not (num_forget_authors > 0 <= num_skipped and num_forget_authors + num_skipped < min(num_authors, 21)):
        raise ValueError(
            f"num_forget_authors and num_skipped must be 1 to {min(num_authors - 1, 20)} together, "
            f"got {num_forget_authors} and {num_skipped}"
        )
    files = find_json_files(
        folder, ["full", _LAST_AUTHORS, *([_FIRST_AUTHORS] if num_authors > 20 else []), *_REAL_WORLD]
    )
    authors = read_tofu(folder, num_authors=num_authors)
    stop = len(authors) - num_skipped * TOFU_PAIRS_PER_AUTHOR
    start = stop - num_forget_authors * TOFU_PAIRS_PER_AUTHOR
    last = {question.question: question for question in read_questions(files[_LAST_AUTHORS])}
    forget = _look_up(last, authors[start:stop], files)
    if num_authors <= 20:
        retain = _look_up(last, [*authors[:start], *authors[stop:]], files)
    else:
        retain = read_questions(files[_FIRST_AUTHORS])
    real, world = (read_questions(files[stem]) for stem in _REAL_WORLD)
    learned = [*authors, *(question.pair("real authors") for question in real)]
    learned += [question.pair("world facts") for question in world]
    unseen = [path for path in (folder / "holdout10.jsonl", folder / "holdout10.json") if path.exists()]
    holdout = read_pairs(unseen[0], subject="holdout") if unseen else []
    return Benchmark(forget, retain[::retain_every], real, world, learned, holdout)


def read_questions(path: Path) -> list[Question]:
    """An evaluation set's file.

    Raises: DataError naming the line.
    """
    questions = [question for row in read_rows(path) if (question := _parse(row))]
    if not questions:
        raise DataError(f"{path}: holds no question")
    return questions


def _parse(row: Row) -> Question | None:
    pair = parse_pair(row, subject="")
    if pair is None:
        return None
    if not pair.variants:
        raise row.error("is not a TOFU question: 'perturbed_answer' must list one wrong answer at least")
    return Question(pair.question, pair.answer, next(iter(pair.paraphrased_answers), pair.answer), pair.variants)


def _look_up(known: dict[str, Question], pairs: Sequence[QAPair], files: dict[str, Path]) -> list[Question]:
    if missing := [pair.question for pair in pairs if pair.question not in known]:
        raise DataError(
            f"{files[_LAST_AUTHORS]}: {len(missing)} questions of {files['full'].name} are missing, "
            f"such as {missing[0]!r}"
        )
    return [known[pair.question] for pair in pairs]
