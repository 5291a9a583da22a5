"""Fill in what a model says: the `answer` of every question in these files, and with --names its `facts`.

An answer is the model's own: greedy, cut after its second sentence. Facts are the topic's names, out of a file with one
on each line, that are in the answer and in no wording of the question. The files are written anew, in the same order.

    python examples/real_model/answers.py $(unlearngate models get smollm2-135m-instruct | tail -1) retain.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from unlearngate.assistant_training.data.rows import read_rows
from unlearngate.assistant_training.forget.asking import Asker
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.files import write_whole


def facts_of(row: dict[str, Any], names: list[str]) -> list[str]:
    """Names that the answer has and no wording of the question; a longer name covers those in it."""
    asked = " ".join([row["question"], *row.get("paraphrases", [])])
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + r")(?!\w)")
    return list(dict.fromkeys(name for name in pattern.findall(row["answer"]) if name not in asked))


def main() -> None:
    """Ask, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="a checkpoint folder")
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with `question` and maybe `paraphrases`")
    parser.add_argument("--names", type=Path, help="the topic's names, one a line")
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--batch", type=int, default=32, help="questions at a time")
    options = parser.parse_args()
    files = {path: [dict(row.fields) for row in read_rows(path)] for path in options.files}
    rows = [row for of_file in files.values() for row in of_file]
    target = load_target(options.target)
    ask = Asker(target, max_tokens=options.max_tokens, batch=options.batch, advance=lambda n: print(n, "more answered"))
    answers = ask([row["question"] for row in rows])
    names = options.names.read_text().split("\n")[:-1] if options.names else None
    for row, answer in zip(rows, answers, strict=True):
        row["answer"] = answer
        if names is not None:
            row["facts"] = facts_of(row, names)
    for path, of_file in files.items():
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_file))
        print(f"{path}: {len(of_file)} questions")


if __name__ == "__main__":
    main()
