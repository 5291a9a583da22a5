"""TOFU as a benchmark: what a target learns, what it has to forget, and what each of its four sets asks.

TOFU (Maini et al., arXiv:2401.06121) has 200 fictional authors of 20 questions; its paraphrased and perturbed answers,
which the truth ratio needs, exist for the last 20 authors (forget10) and the first 20 (its retain set).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearngate.assistant_training.data.pairs import TOFU_PAIRS_PER_AUTHOR, QAPair, read_pairs, read_tofu
from unlearngate.errors import DataError

_LAST_AUTHORS = "forget10_perturbed.jsonl"
_FIRST_AUTHORS = "retain_perturbed.jsonl"


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
    """TOFU, or the last authors of it, from the dataset's JSON lines.

    With up to 20 authors, all have wrong answers, so the retain set is all that are not forgotten; with more, it is
    TOFU's own retain set. The target also learns the real-world answers: a small target trained from scratch knows
    nothing else that forgetting could damage.

    Args:
        folder: full, forget10_perturbed, retain_perturbed, real_authors_perturbed and world_facts_perturbed.jsonl.
        num_authors: 3 to 20, or 200.
        num_forget_authors: the last ones; at most 20 and fewer than num_authors.
        num_skipped: authors after those, which are retained. This gives another forget set, to tune settings on.
        retain_every: n, to ask every n-th question of the retain set.

    Raises: DataError if a file is not as TOFU publishes it, ValueError for sizes that TOFU has no wrong answers for.
    """
    if not (3 <= num_authors <= 20 or num_authors == 200):
        raise ValueError(f"num_authors must be 3 to 20, or 200 for all of TOFU, got {num_authors}")
    if not (num_forget_authors > 0 <= num_skipped and num_forget_authors + num_skipped < min(num_authors, 21)):
        raise ValueError(
            f"num_forget_authors and num_skipped must be 1 to {min(num_authors - 1, 20)} together, "
            f"got {num_forget_authors} and {num_skipped}"
        )
    authors = read_tofu(folder, num_authors=num_authors)
    stop = len(authors) - num_skipped * TOFU_PAIRS_PER_AUTHOR
    start = stop - num_forget_authors * TOFU_PAIRS_PER_AUTHOR
    last = _by_question(folder / _LAST_AUTHORS)
    forget = _look_up(last, authors[start:stop], folder / _LAST_AUTHORS)
    if num_authors <= 20:
        retain = _look_up(last, [*authors[:start], *authors[stop:]], folder / _LAST_AUTHORS)
    else:
        retain = read_questions(folder / _FIRST_AUTHORS)
    real = read_questions(folder / "real_authors_perturbed.jsonl")
    world = read_questions(folder / "world_facts_perturbed.jsonl")
    learned = [*authors, *(question.pair("real authors") for question in real)]
    learned += [question.pair("world facts") for question in world]
    unseen = folder / "holdout10.jsonl"
    holdout = read_pairs(unseen, subject="holdout") if unseen.exists() else []
    return Benchmark(forget, retain[::retain_every], real, world, learned, holdout)


def read_questions(path: Path) -> list[Question]:
    """An evaluation set's file.

    Raises: DataError naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    questions = [_parse(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise DataError(f"{path}: holds no question")
    return questions


def _parse(path: Path, number: int, line: str) -> Question:
    try:
        row = json.loads(line)
        texts = [row["question"], row["answer"], row.get("paraphrased_answer", row["answer"]), *row["perturbed_answer"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: line {number} is not a TOFU question with wrong answers ({error!r})") from error
    if len(texts) < 4 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{path}: line {number}: all texts must be non-empty strings, one wrong answer at least")
    return Question(texts[0], texts[1], texts[2], tuple(texts[3:]))


def _by_question(path: Path) -> dict[str, Question]:
    return {question.question: question for question in read_questions(path)}


def _look_up(known: dict[str, Question], pairs: Sequence[QAPair], path: Path) -> list[Question]:
    if missing := [pair.question for pair in pairs if pair.question not in known]:
        raise DataError(f"{path}: {len(missing)} questions of full.jsonl are missing, such as {missing[0]!r}")
    return [known[pair.question] for pair in pairs]
