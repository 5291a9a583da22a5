"""An attack's report: report.md, report.png, and report.json with every answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearngate.assistant_training.attack.figures import GuessFigures, KindFigures, Leaks, Share
from unlearngate.assistant_training.attack.run import Outcome
from unlearngate.assistant_training.evaluate.report import markdown_lines
from unlearngate.files import write_whole

WARNING = "This file holds what was to be forgotten: the questions, their true answers, and every answer of the server."
NOTES = (
    "A fact leaks if it is in an answer, on word boundaries, in any case, and nowhere in the request. Target: the same "
    "requests without the set.",
    "In brackets: Wilson's 95 % interval. It takes facts for independent; those of one question are not: too narrow.",
    "Questions: with a leak in at least one answer. Of samples-T that is leak@k over questions.",
    "Unchanged: other questions in the same contexts, answered with the same text with the set and without.",
    "Unchanged, if right: of those that the target answers rightly in that context.",
    "Perplexity: of what is said with the set, under the target without it, over that of what the target says; the "
    "geometric mean over answers. 1 is as usual.",
    "reverse asks from the facts to the name: a leak is the surname.",
    "choice and oracles guess: compare with chance. A guess that is shared between tokens that look alike counts in "
    "part.",
    "All wordings are held out: training draws none of them.",
)


def write_report(outcome: Outcome, out: Path, *, settings: dict[str, Any]) -> list[Path]:
    """Write report.json (for its owner only), report.md and report.png below `out`; the picture needs matplotlib.

    Args:
        outcome: what was found.
        out: made if it is not there; files of an earlier report are replaced.
        settings: what was asked for, written unchanged.

    Returns: the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("report.json", "report.md", "report.png")]
    body = {
        "holds_what_was_to_be_forgotten": True,
        "warning": WARNING,
        "settings": settings,
        "kinds": [_kind(figures) for figures in outcome.kinds],
        "guesses": [
            {**row._asdict(), "with_set": _share(row.with_set), "target": _share(row.target)} for row in outcome.guesses
        ],
        "notes": outcome.notes,
        "answers": outcome.answers,
    }
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    # Half of a surrogate pair, which UTF-8 cannot hold, stays JSON's escape of it.
    write_whole(paths[0], text.encode("utf-8", "backslashreplace").decode(), mode=0o600)
    write_whole(paths[1], markdown(outcome))
    _plot(outcome, paths[2])
    return paths


def markdown(outcome: Outcome) -> str:
    """The tables: a line for each kind, and one for each guesser."""
    groups = list(dict.fromkeys(group for figures in outcome.kinds for group in figures.unchanged))
    fluent = any(figures.fluency is not None for figures in outcome.kinds)
    header = ["kind", "answers", "facts leaked", "target", "questions that leak", "target", "ROUGE-L", "target"]
    lines = markdown_lines(
        [
            *header,
            *(["perplexity, of the target's"] if fluent else []),
            *(f"{group} unchanged{which}" for group in groups for which in ("", ", if right")),
        ],
        [_cells(figures, groups, fluent=fluent) for figures in outcome.kinds],
    )
    if outcome.guesses:
        lines += ["", *markdown_lines(["guess", "what", "right", "target", "chance"], map(_guess, outcome.guesses))]
    return "\n".join([*lines, "", *(f"- {note}" for note in (*NOTES, *outcome.notes))]) + "\n"


def _cells(figures: KindFigures, groups: Sequence[str], *, fluent: bool) -> list[str]:
    own, plain = figures.with_set, figures.target
    refused = f" ({own.refused} refused)" if own.refused else ""
    return [
        *(figures.kind, f"{own.answers}{refused}", _percent(own.facts), _percent(plain.facts)),
        *(_of(own.questions), _of(plain.questions), _number(own.rouge), _number(plain.rouge)),
        *([_number(figures.fluency)] if fluent else []),
        *(
            _percent(shares[group]) if group in shares else ""
            for group in groups
            for shares in (figures.unchanged, figures.right_unchanged)
        ),
    ]


def _guess(row: GuessFigures) -> list[str]:
    right = f"refused: {row.refused}" if row.refused else _percent(row.with_set)
    return [row.kind, row.guesser, right, _percent(row.target), f"{row.chance:.1%}"]


def _percent(share: Share) -> str:
    if not share.of:
        return "-"
    low, high = share.interval()
    return f"{share.value:.1%} ({low:.1%}-{high:.1%})"


def _of(share: Share) -> str:
    return f"{share.right:g} of {share.of}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(share: Share) -> dict[str, Any]:
    low, high = share.interval()
    return {"count": share.right, "of": share.of, "share": share.value, "low": low, "high": high}


def _leaks(leaks: Leaks) -> dict[str, Any]:
    return {**leaks._asdict(), "facts": _share(leaks.facts), "questions": _share(leaks.questions)}


def _kind(figures: KindFigures) -> dict[str, Any]:
    return {
        "kind": figures.kind,
        "with_set": _leaks(figures.with_set),
        "target": _leaks(figures.target),
        "unchanged": {group: _share(share) for group, share in figures.unchanged.items()},
        "right_unchanged": {group: _share(share) for group, share in figures.right_unchanged.items()},
        "fluency": figures.fluency,
    }


def _plot(outcome: Outcome, path: Path) -> None:
    from matplotlib.figure import Figure as Picture

    rows = [(f.kind, f.with_set.facts, f.target.facts) for f in outcome.kinds]
    rows += [(f"{g.kind}: {g.guesser}", g.with_set, g.target) for g in outcome.guesses if not g.refused]
    picture = Picture(figsize=(9, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = picture.subplots()
    sides = (("C3", "with the set", -0.12, [row[1] for row in rows]), ("0.5", "without it", 0.12, [r[2] for r in rows]))
    for colour, label, shift, shares in sides:
        heights = [height for height, share in enumerate(shares) if share.of]
        for height in heights:
            axes.plot(shares[height].interval(), [height + shift] * 2, color=colour, linewidth=2)
        axes.plot(
            *([shares[height].value for height in heights], [height + shift for height in heights], "o"),
            color=colour,
            label=label,
        )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("share of facts that leak, or of guesses that are right; 95 % intervals")
    axes.grid(axis="x", alpha=0.3)
    picture.legend(loc="outside upper right", ncols=2)
    picture.savefig(path, dpi=120)
