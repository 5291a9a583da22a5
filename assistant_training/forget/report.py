"""A request's report in plain words: what was taken away, what was left, what is not covered, how to lift it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearngate.assistant_training.forget.measuring import Figures

_NOT_COVERED = (
    "The weights stay as they are: whoever holds them holds the knowledge. What holds is the composition, for requests "
    "for which the set is in force.",
    "Questions that nobody asked here: other facts, other names, other languages, long conversations. The attack below "
    "asks the running server in 29 ways that training never saw.",
)

# The attack's kinds in plain words.
_ASKED = {
    "plain": "alone",
    "turns-others-1": "after a turn about something else",
    "turns-withheld-1": "after a turn about it",
    "two-subjects": "together with another question",
    "wrapped-behind": "with words behind",
    "prefill": "with the answer begun",
}


def report(
    name: str,
    asked: Mapping[str, int],
    names: Mapping[str, Sequence[str]],
    figures: Figures,
    problems: Sequence[str],
    seconds: Mapping[str, float],
    *,
    sets: Path,
    digest: str | None,
    withheld: Mapping[str, Any] | None,
    probes: Path,
    instead: str | None = None,
) -> str:
    """The report as Markdown.

    Args:
        name: the forget set's.
        asked: how many questions were asked, trained on and held out.
        names: subjects, unknown subjects, neighbours.
        figures: of the held-out questions.
        problems: why the set should not be in force.
        seconds: by step.
        sets: the folder that it was put in.
        digest: of the set in force; None if it is not.
        withheld: the set of the texts' words: its `reference`, the `letters` of a run, `of` how many, its
            `seconds`, and how many texts were `too_short`.
        probes: the held-out questions.
        instead: the sentence that the set says, if it says one.
    """
    total = figures.total
    state = f"In force: {name}@{digest[:12]}, in {sets}." if digest else "**Not in force.**"
    why = ["", "It does not pass:" if problems else "", *(f"- {problem}" for problem in problems)] if problems else []
    placed = [*([name] if digest else []), *([withheld["reference"].partition("@")[0]] if withheld else [])]
    rows = [
        ("what it was asked about", ", ".join(names["subjects"])),
        ("of these names the target told nothing", ", ".join(names["unknown"]) or "-"),
        ("questions asked; answered with facts", f"{asked['questions']}; {asked['forget'] + asked['forget_held_out']}"),
        ("trained on: to forget; to keep", f"{asked['forget']}; {asked['retain']}"),
        ("held-out questions, alone and in contexts: facts that are told", str(total.facts)),
        ("of these still told with the set", f"{total.leaked} ({figures.leak_rate:.1%})"),
        ("which they are, and how often", ", ".join(f"{fact} ({n})" for fact, n in figures.still.items()) or "-"),
        ("other held-out answers that stay word for word", f"{total.unchanged} of {total.kept}"),
        ("neighbours among them", ", ".join(names["neighbours"]) or "-"),
        *((f"seconds to {step}", f"{value:.0f}") for step, value in seconds.items()),
    ]
    return "\n".join(
        [
            f"# {name}",
            "",
            state,
            *_of_the_words(withheld, sets),
            *why,
            "",
            "| | |",
            "|---|---|",
            *(f"| {what} | {value} |" for what, value in rows),
            "",
            "| asked | facts still told | others' answers unchanged |",
            "|---|---|---|",
            *(
                f"| {_ASKED[kind]} | {counts.leaked} of {counts.facts} | {counts.unchanged} of {counts.kept} |"
                for kind, counts in figures.by_kind.items()
            ),
            "",
            "## Not covered",
            "",
            *(f"- {line}" for line in _NOT_COVERED),
            "",
            "## What to do next",
            "",
            *([_of_several(names["subjects"]), *([""] if digest else [])] if len(names["subjects"]) > 1 else []),
            *(_of_a_set_in_force(name, probes) if digest else _of_a_set_that_is_not(instead)),
            *(f"    unlearngate sets remove {one} {sets}    # lift it" for one in placed),
            f"    unlearngate forget --purge {probes.parent}    # delete texts, questions and answers; the set stays",
            "",
        ]
    )


def _of_a_set_in_force(name: str, probes: Path) -> list[str]:
    return [
        f"    unlearngate attack --server URL --set {name} --probes {probes}    # what still comes out, 29 ways",
        f"    unlearngate keys add keys.json --id ID --tenant T --require {name}    # in force for this key",
    ]


def _of_a_set_that_is_not(instead: str | None) -> list[str]:
    sentence = (
        "- The same with `--instead SENTENCE` and another `--case`: less comes out where the answer is a sentence."
    )
    return [
        "- The same command with a larger `--budget`, or without one, goes on with a training that the budget ended.",
        *([] if instead else [sentence]),
        "- `--write-anyway` puts the set in force as it is.",
        "",
    ]


def _of_several(subjects: Sequence[str]) -> str:
    return (
        f"- All of {', '.join(subjects)} is forgotten, whatever was asked about it. If that is too much, give "
        "`--subjects 1` for the first of them alone, and another `--case`."
    )


def _of_the_words(withheld: Mapping[str, Any] | None, sets: Path) -> list[str]:
    if withheld is None:
        return ["", "No text is withheld word for word: the request has none, or none that is long enough."]
    return [
        "",
        f"In force: {withheld['reference']}, in {sets}, since {withheld['seconds']:.1f} s after it was read. No run "
        f"of {withheld['letters']} of its {withheld['of']:,} letters comes out, whatever is sampled."
        + (f" {short} of the texts are shorter and are not withheld." if (short := withheld["too_short"]) else ""),
    ]
