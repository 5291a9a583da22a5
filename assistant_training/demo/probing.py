"""Ask a running server every probe of a demo, with and without each forget set, and count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from unlearngate.assistant_training.data.rows import read_rows
from unlearngate.assistant_training.evaluate.asking import Answer, Asked, ask_all
from unlearngate.assistant_training.evaluate.metrics import recited
from unlearngate.errors import UnlearngateError


@dataclass(frozen=True, slots=True)
class Probe:
    """One question, its answer, and the forget set that should take it away, if any."""

    question: str
    answer: str
    forget_set: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One forget set's figures, counted over a server's answers.

    recited = ROUGE-L recall of at least 0.9 of the known answer; unchanged = token for token the plain answer.
    """

    forget_set: str
    answers: int
    recited_plain: int
    recited_forgetting: int
    others: int
    others_unchanged: int

    def figures(self) -> dict[str, float]:
        """The shares that the demo is judged by."""
        return {
            "recited without it": self.recited_plain / self.answers,
            "recited with it": self.recited_forgetting / self.answers,
            "others' answers unchanged": self.others_unchanged / self.others,
        }

    def keeps_the_promise(self) -> bool:
        """Under 10 % recited with the set, at least 95 % without it, at least 99 % of the others' unchanged."""
        plain, forgetting, others = self.figures().values()
        return plain >= 0.95 and forgetting < 0.10 and others >= 0.99


def read_probes(path: Path) -> list[Probe]:
    """Read a demo's `probes.jsonl`.

    Raises: UnlearngateError naming the file and line if it cannot be read.
    """
    if not path.exists():
        raise UnlearngateError(f"{path} is missing; first: unlearngate demo build")
    probes = []
    for row in read_rows(path):
        try:
            probes.append(Probe(row.fields["question"], row.fields["answer"], row.fields["forget_set"]))
        except KeyError as error:
            raise row.error(f"is not a probe: {error} is missing") from error
    return probes


def probe_server(
    url: str, model: str, probes: Sequence[Probe], *, max_tokens: int = 128, progress: Progress | None = None
) -> list[Outcome]:
    """Ask everything once plainly and once per forget set, in batches that mix all of them.

    Args:
        url: the server's address, without /v1.
        model: the served name.
        probes: what to ask.
        max_tokens: answers are cut here.
        progress: shows how far it is.

    Returns: an outcome per forget set that the probes name.
    Raises: openai.OpenAIError if a request fails, UnlearngateError if one was answered with other sets in force.
    """
    names = list(dict.fromkeys(p.forget_set for p in probes if p.forget_set is not None))
    asked = [Asked(p.question, sets) for p in probes for sets in [(), *((name,) for name in names)]]
    answers = ask_all(url, model, asked, max_tokens=max_tokens, progress=progress)
    said = {(job.question, *job.forget_sets): answer for job, answer in zip(asked, answers, strict=True)}
    return [_count(name, probes, said) for name in names]


def _count(name: str, probes: Sequence[Probe], said: dict[tuple[str, ...], Answer]) -> Outcome:
    inside = [p for p in probes if p.forget_set == name]
    outside = [p for p in probes if p.forget_set != name]
    return Outcome(
        forget_set=name,
        answers=len(inside),
        recited_plain=_num_recited(inside, [said[p.question,] for p in inside]),
        recited_forgetting=_num_recited(inside, [said[p.question, name] for p in inside]),
        others=len(outside),
        others_unchanged=sum(said[p.question,].token_ids == said[p.question, name].token_ids for p in outside),
    )


def _num_recited(probes: Sequence[Probe], answers: Sequence[Answer]) -> int:
    return int(recited([p.answer for p in probes], [a.text for a in answers]).sum())
