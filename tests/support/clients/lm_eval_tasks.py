"""Tasks for lm-eval about the demo's people, of each kind that asks for a prompt's log-probabilities.

Usage: python lm_eval_tasks.py "$(unlearngate demo path)/probes.jsonl" FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FORGOTTEN = "tobias-renkel"
CHOICES = 4
# By name: what is asked of each document, and the figures.
_ANSWER = {"output_type": "loglikelihood", "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}"}
_ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{answer}}"}
_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 0,
}
_KINDS = {
    "answer": (_ANSWER, {"acc": True, "perplexity": False}),
    "rolling": (_ROLLING, {"byte_perplexity": False}),
    "choice": (_CHOICE, {"acc": True}),
}


def write_tasks(probes: Path, folder: Path, *, others_every: int = 1) -> list[str]:
    """Write the tasks `KIND_forgotten`, about the set's person, and `KIND_others`; returns their names.

    Of the questions about others each `others_every`-th is taken. The wrong choices are the same question's answers
    about other people, with the right person's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_person: dict[str, list[dict]] = {}
    for line in probes.read_text().splitlines():
        probe = json.loads(line)
        by_person.setdefault(probe["subject"], []).append(probe)
    documents: dict[str, list[dict]] = {"forgotten": [], "others": []}
    people = list(by_person)
    for number, person in enumerate(people):
        others = [people[(number + step) % len(people)] for step in range(1, CHOICES)]
        for index, probe in enumerate(by_person[person]):
            wrong = [_renamed(by_person[other][index]["answer"], other, person) for other in others]
            document = {
                "prompt": f"<|user|>{probe['question']}<|end|><|assistant|>",
                "answer": probe["answer"],
                "choices": [probe["answer"], *wrong],
            }
            documents["forgotten" if probe["forget_set"] == FORGOTTEN else "others"].append(document)
    documents["others"] = documents["others"][::others_every]
    for about, lines in documents.items():
        (folder / f"{about}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    names = [f"{kind}_{about}" for kind in _KINDS for about in documents]
    for name in names:
        kind, _, about = name.partition("_")
        asked, figures = _KINDS[kind]
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder.resolve() / f"{about}.jsonl")}},
            "test_split": "test",
            "target_delimiter": "",
            **asked,
            "metric_list": [{"metric": m, "higher_is_better": higher} for m, higher in figures.items()],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # which is YAML, too
    return names


def _renamed(answer: str, other: str, person: str) -> str:
    for theirs, ours in zip(other.split("-"), person.split("-"), strict=True):
        answer = answer.replace(theirs.title(), ours.title())
    return answer


if __name__ == "__main__":
    print(",".join(write_tasks(Path(sys.argv[1]), Path(sys.argv[2]))))
