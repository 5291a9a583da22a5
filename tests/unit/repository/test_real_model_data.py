"""examples/real_model: nothing held out is trained on, and facts are what its README says they are."""

import importlib.util
import re
from pathlib import Path

import pytest

from unlearngate.assistant_training.data.pairs import read_pairs

FOLDER = Path(__file__).parents[3] / "examples" / "real_model"
TOPICS = {path.name.partition(".")[0] for path in FOLDER.glob("*.names.txt")}
FILES = {path.name: read_pairs(path, subject=path.name.partition(".")[0]) for path in FOLDER.glob("*.jsonl")}


def answers_script():
    spec = importlib.util.spec_from_file_location("answers", FOLDER / "answers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_wording_is_in_two_places():
    wordings = [q.casefold() for pairs in FILES.values() for pair in pairs for q in (pair.question, *pair.paraphrases)]
    assert len(wordings) == len(set(wordings))


@pytest.mark.parametrize("name", [name for name in FILES if name.partition(".")[0] in TOPICS])
def test_facts_are_in_the_answer_and_in_no_wording(name):
    names = (FOLDER / f"{name.partition('.')[0]}.names.txt").read_text().split("\n")[:-1]
    for pair in FILES[name]:
        assert len(pair.paraphrases) == 3 and pair.facts
        assert set(pair.facts) <= set(names)
        for fact in pair.facts:
            assert fact in pair.answer
            assert not any(fact in wording for wording in (pair.question, *pair.paraphrases))
        assert answers_script().facts_of(pair.row(), names) == list(pair.facts)


def test_the_readme_counts_them():
    said = dict(re.findall(r"\| `(\S+\.jsonl)` \|.*\| (\d+) \|", (FOLDER / "README.md").read_text()))
    assert said == {name: str(len(pairs)) for name, pairs in FILES.items()}
