"""MUSE: verbatim memorisation (VerbMem), knowledge (KnowMem) and privacy leakage (PrivLeak) of a served model.

Prompts, lengths and scores are the benchmark's: bare text without a chat template, greedy, ROUGE-L F1 on unstemmed
words; Min-40 % of whole texts for PrivLeak.
Source: MUSE, arXiv:2407.06460, and its released evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearngate.assistant_training.evaluate.benchmarks.asked import ScoredText, Server
from unlearngate.assistant_training.evaluate.benchmarks.files import checked_folder, evenly, split_rows, text_of
from unlearngate.assistant_training.evaluate.benchmarks.results import Figure, Row, mean
from unlearngate.assistant_training.evaluate.memorization import member_auc, min_k_score
from unlearngate.assistant_training.evaluate.metrics import rouge_f1
from unlearngate.errors import DataError

PARTS = ("verbmem", "knowmem", "privleak")
VERBMEM_TOKENS = 128  # said, and of the true continuation
KNOWMEM_TOKENS = 32
_MIN_K = 0.4
_ANSWER_ENDS = ["\n\n", "\nQuestion", "Question:"]


@dataclass(frozen=True, slots=True)
class Muse:
    """The parts that were read; one that was not is empty.

    Attributes:
        verbmem: (prompt, what follows).
        knowmem: of `forget` and `retain`, (prompt with examples, answer).
        privleak: of `forget` and `holdout`, texts.
    """

    verbmem: list[tuple[str, str]]
    knowmem: dict[str, list[tuple[str, str]]]
    privleak: dict[str, list[str]]

    def num_requests(self) -> int:
        """Under one combination of sets."""
        asked = [len(pairs) for pairs in self.knowmem.values()] + [len(texts) for texts in self.privleak.values()]
        return len(self.verbmem) + sum(asked)


def read_muse(folder: Path, parts: Sequence[str] = PARTS, *, limit: int | None = None) -> Muse:
    """MUSE-News or MUSE-Books.

    Args:
        folder: holds folders named as the parts, as on Hugging Face or as MUSE's load_data.py writes them: verbmem
            with `forget` (prompt, gt); knowmem with `forget_qa`, `retain_qa` and `..._icl` (question, answer); privleak
            with `forget` and `holdout` (text).
        parts: which are read.
        limit: items of each file at most, at even distances; None takes all.

    Raises: DataError naming what is missing.
    """
    checked_folder(folder)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise DataError(f"MUSE has no {', '.join(unknown)}; its parts here are {', '.join(PARTS)}")
    verbmem: list[tuple[str, str]] = []
    knowmem: dict[str, list[tuple[str, str]]] = {}
    privleak: dict[str, list[str]] = {}
    if "verbmem" in parts:
        rows = split_rows(folder / "verbmem", "forget")
        verbmem = evenly([(text_of(row, "prompt"), text_of(row, "gt")) for row in rows], limit)
    if "knowmem" in parts:
        for name in ("forget", "retain"):
            examples = "".join(f"{asked}{answer}\n\n" for asked, answer in _questions(folder, f"{name}_qa_icl"))
            asked = evenly(_questions(folder, f"{name}_qa"), limit)
            knowmem[name] = [(examples + question, answer) for question, answer in asked]
    if "privleak" in parts:
        for name in ("forget", "holdout"):
            texts = [text_of(row, "text") for row in split_rows(folder / "privleak", name)]
            privleak[name] = evenly(texts, limit)
    return Muse(verbmem, knowmem, privleak)


def with_cut_continuations(server: Server, muse: Muse, forget_sets: Sequence[str]) -> Muse:
    """The same with the true continuations cut at 128 of the target's tokens, which the server tells, as MUSE does.

    Args:
        server: which is asked.
        muse: as read.
        forget_sets: which the caller may ask with; the tokens do not depend on them.

    Raises: as `Server`.
    """
    scored = server.score([[follows] for _, follows in muse.verbmem], forget_sets)
    cut = [(prompt, first_tokens(follows, one[0])) for (prompt, follows), one in zip(muse.verbmem, scored, strict=True)]
    return Muse(cut, muse.knowmem, muse.privleak)


def first_tokens(text: str, scored: ScoredText, most: int = VERBMEM_TOKENS) -> str:
    """The text of the first tokens; a begin-of-sequence token counts, as in MUSE, and has no text."""
    tokens = scored.tokens[:most]
    shown = tokens if text.startswith(tokens[0]) else tokens[1:]
    return text if len(scored.tokens) <= most else text[: len("".join(shown))]


def ask_muse(server: Server, muse: Muse, forget_sets: tuple[str, ...], *, retrain_auc: float | None = None) -> Row:
    """VerbMem, KnowMem and PrivLeak under one combination of sets.

    Args:
        server: which is asked.
        muse: with continuations that are cut.
        forget_sets: in force; () is the plain target.
        retrain_auc: `priv_leak_auc` of a model that was trained without the forget texts; gives PrivLeak.

    Raises: as `Server`.
    """
    figures: list[Figure] = []
    items: list[dict[str, Any]] = []

    def compare(part: str, asked: Sequence[tuple[str, str]], **how: Any) -> None:
        said = server.say("/completions", [{"prompt": prompt} for prompt, _ in asked], forget_sets, **how)
        said = [_before(text, how.get("stop", [])) for text in said]
        scores = rouge_f1([answer for _, answer in asked], said).tolist()
        figures.append(mean(f"{part}, ROUGE-L F1", scores))
        for (prompt, answer), text, score in zip(asked, said, scores, strict=True):
            items.append({"part": part, "prompt": prompt, "answer": answer, "said": text, "rouge_l_f1": score})

    if muse.verbmem:
        compare("VerbMem forget", muse.verbmem, max_tokens=VERBMEM_TOKENS)
    for name, asked in muse.knowmem.items():
        compare(f"KnowMem {name}", asked, max_tokens=KNOWMEM_TOKENS, stop=_ANSWER_ENDS)
    if muse.privleak:
        found: dict[str, list[float]] = {}
        for name, texts in muse.privleak.items():
            scored = server.score([[text] for text in texts], forget_sets)
            found[name] = [min_k_score(one[0].log_p[1:], share=_MIN_K) for one in scored]
            items += [{"part": f"PrivLeak {name}", "min_k": score} for score in found[name]]
        auc, number = priv_leak_auc(found["forget"], found["holdout"]), sum(map(len, found.values()))
        figures.append(Figure("PrivLeak AUC", auc, number))
        if retrain_auc is not None:
            figures.append(Figure("PrivLeak, %", priv_leak(auc, retrain_auc), number))
    return Row(forget_sets, figures, items)


def priv_leak_auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """The chance that a holdout text looks more like training data than a forget text, ties counting half, in [0, 1].

    This is the direction of MUSE's released evaluation: a model that learned the forget texts is near 0, one that makes
    them stand out as unlikely is near 1, one that never saw either is near 0.5.

    Args:
        forget: Min-K scores, higher is more like training data.
        holdout: those of texts that no model saw.
    """
    return member_auc(holdout, forget)


def priv_leak(auc: float, retrain_auc: float) -> float:
    """MUSE's PrivLeak in percent of the retrained model's AUC: 0 is ideal, negative is under-, positive over-unlearned.

    Raises: DataError unless `retrain_auc` is above 0 and at most 1.
    """
    if not 0.0 < retrain_auc <= 1.0:
        raise DataError(f"--retrain-auc must be above 0 and at most 1, got {retrain_auc}")
    return (auc - retrain_auc) / retrain_auc * 100


def _questions(folder: Path, stem: str) -> list[tuple[str, str]]:
    rows = split_rows(folder / "knowmem", stem)
    return [(f"Question: {text_of(row, 'question')}\nAnswer: ", text_of(row, "answer")) for row in rows]


def _before(text: str, ends: Sequence[str]) -> str:
    for end in ends:
        text = text.partition(end)[0]
    return text
