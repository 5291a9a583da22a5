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

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from unlearngate.assistant_training.data.rows import read_rows
from unlearngate.assistant_training.model.loaded_target import LoadedTarget, load_target
from unlearngate.files import write_whole

# A full stop after an initial or a title ends no sentence.
SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bSt)[.!?][\")]*(?=\s|$)")


def first_sentences(text: str, most: int = 2) -> str:
    """The first so many whole sentences; the whole text if it has no end of one."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)][:most]
    return text[: ends[-1]] if ends else text


def facts_of(row: dict[str, Any], names: list[str]) -> list[str]:
    """Names that the answer has and no wording of the question; a longer name covers those in it."""
    asked = " ".join([row["question"], *row.get("paraphrases", [])])
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + r")(?!\w)")
    return list(dict.fromkeys(name for name in pattern.findall(row["answer"]) if name not in asked))


class Said(StoppingCriteria):
    """Ends a row once it has its sentences."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_prompt: int) -> None:
        self._tokenizer, self._num_prompt = tokenizer, num_prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """For each row (batch), whether it is done."""
        texts = self._tokenizer.batch_decode(input_ids[:, self._num_prompt :], skip_special_tokens=True)
        # What follows the full stop tells whether a sentence has ended, so one token more is waited for.
        done = [len([m for m in SENTENCE_END.finditer(text) if m.end() < len(text)]) >= 2 for text in texts]
        return torch.tensor(done, device=input_ids.device)


@torch.no_grad()
def ask(target: LoadedTarget, questions: list[str], *, max_tokens: int, batch: int) -> list[str]:
    """The model's answers."""
    tokenizer, answers = target.tokenizer, []
    tokenizer.padding_side = "left"
    for start in range(0, len(questions), batch):
        chats = [[{"role": "user", "content": question}] for question in questions[start : start + batch]]
        prompts = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(target.model.device)
        num_prompt = prompts["input_ids"].shape[1]
        ids = target.model.generate(
            **prompts,
            max_new_tokens=max_tokens,
            do_sample=False,
            stopping_criteria=[Said(tokenizer, num_prompt)],
        )[:, num_prompt:]
        answers += [first_sentences(text.strip()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        print(f"{len(answers)} of {len(questions)}", flush=True)
    return answers


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
    answers = ask(target, [row["question"] for row in rows], max_tokens=options.max_tokens, batch=options.batch)
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
