"""Time sets of kind `verbatim`: how long one takes to make, and what a decode step takes with many in force.

    python -m benchmarks.verbatim TARGET --sets 100 --rows 16

A step here is what the logits processor does for such sets, without the engine around it: on ordinary text, and on text
of which every row is withheld, which the rows go on with as long as they may. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from rich.progress import Progress

from unlearngate.assistant_training.train.settings import VerbatimSettings
from unlearngate.assistant_training.train.verbatim import make_verbatim_set
from unlearngate.passages import PASSAGES_FILE
from unlearngate.server.contract.plan import Plan, VerbatimSet
from unlearngate.server.worker.sequences import ListedTokens
from unlearngate.server.worker.verbatim import Verbatim
from unlearngate.target import load_tokenizer

_PROMPT = 200  # tokens


def main() -> None:
    """Make the sets, then time steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="a checkpoint folder, of which the tokenizer is used")
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--megabytes", type=float, default=1.0, help="of text in a set")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(20_000)]
    size = int(args.megabytes * 1e6)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        made, texts, times = [], [], []
        for number in range(args.sets):
            text = " ".join(rng.choices(words, k=size // 6))[:size]
            began = time.monotonic()
            one = make_verbatim_set(
                {"text": text}, Path(scratch) / f"s{number}", VerbatimSettings(), progress=_silent()
            )
            times.append(time.monotonic() - began)
            texts.append(text)
            made.append(VerbatimSet(one.digest, str(one.folder)))
        figures["make_s"] = median(times)
        figures["file_mb"] = (Path(made[0].folder) / PASSAGES_FILE).stat().st_size / 1e6
        tokenizer = load_tokenizer(args.target)
        vocab_size = len(tokenizer)
        verbatim = Verbatim(args.target, vocab_size, tokenizer.eos_token_id)
        began = time.monotonic()
        verbatim.begin(Plan(verbatim=tuple(made[:1])))
        figures["first_set_s"] = time.monotonic() - began
        began = time.monotonic()
        verbatim.begin(Plan(verbatim=tuple(made)))
        figures["other_sets_s"] = time.monotonic() - began
        for count in sorted({1, args.sets}):
            plan = Plan(verbatim=tuple(made[:count]))
            ordinary = [" ".join(rng.choices(words, k=1500)) for _ in range(args.rows)]
            withheld = [texts[row % count][2000 * row : 2000 * row + 9000] for row in range(args.rows)]
            for name, rows in (("ordinary", ordinary), ("withheld", withheld)):
                sequences = [tokenizer(row, add_special_tokens=False).input_ids for row in rows]
                figures[f"{name}_{count}_sets_ms"] = _step_ms(verbatim, plan, sequences, vocab_size, args.steps)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


def _step_ms(verbatim: Verbatim, plan: Plan, sequences: list[list[int]], vocab_size: int, steps: int) -> float:
    """The median step in which each sequence is given its next token; the first reads the prompts."""
    rows = []
    for number, sequence in enumerate(sequences):
        followed = verbatim.begin(plan)
        assert followed is not None
        rows.append((number, followed, ListedTokens(sequence[:_PROMPT], [])))
    times = []
    logits = torch.zeros(len(rows), vocab_size)
    for step in range(steps + 1):
        began = time.perf_counter()
        verbatim.forbid(logits, rows)
        times.append(time.perf_counter() - began)
        for number, _, tokens in rows:
            rows[number][2].output = [*tokens.output, sequences[number][_PROMPT + step]]
    return 1000 * median(times[1:])


def _silent() -> Progress:
    return Progress(disable=True)


if __name__ == "__main__":
    main()
