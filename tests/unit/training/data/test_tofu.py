"""TOFU's files, as we write them here in its form."""

import json

import pytest

from unlearngate.assistant_training.data.tofu import Question, read_benchmark, read_questions
from unlearngate.errors import DataError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def question(text, wrong=3, **more):
    return {
        "question": text,
        "answer": f"{text} yes",
        "perturbed_answer": [f"{text} no {i}" for i in range(wrong)],
        **more,
    }


@pytest.fixture
def folder(tmp_path):
    """30 authors; the last 20 with paraphrases and wrong answers."""
    asked = [(author, i) for author in range(30) for i in range(20)]
    write(tmp_path / "full.jsonl", [{"question": f"a{a} q{i}", "answer": f"a{a} q{i} yes"} for a, i in asked])
    last = [question(f"a{a} q{i}", 5, paraphrased_answer=f"yes, a{a} q{i}") for a, i in asked if a >= 10]
    write(tmp_path / "forget10_perturbed.jsonl", last)
    write(tmp_path / "retain_perturbed.jsonl", [question(f"a{a} q{i}", 5) for a, i in asked if a < 10])
    write(tmp_path / "real_authors_perturbed.jsonl", [question(f"real {i}") for i in range(4)])
    write(tmp_path / "world_facts_perturbed.jsonl", [question(f"world {i}") for i in range(5)])
    return tmp_path


def test_the_last_authors_are_forgotten_and_the_others_kept(folder):
    benchmark = read_benchmark(folder, num_authors=6, num_forget_authors=2)
    assert [q.question for q in benchmark.forget] == [f"a{a} q{i}" for a in (28, 29) for i in range(20)]
    assert [q.question for q in benchmark.retain] == [f"a{a} q{i}" for a in range(24, 28) for i in range(20)]
    assert benchmark.forget[0].paraphrased == "yes, a28 q0"
    assert len(benchmark.forget[0].perturbed) == 5
    assert len(benchmark.learned) == 6 * 20 + 4 + 5
    assert len(benchmark.retained_pairs) == 4 * 20 + 4 + 5
    assert not {p.question for p in benchmark.retained_pairs} & {p.question for p in benchmark.forget_pairs}


def test_another_forget_set_can_be_chosen_for_tuning(folder):
    benchmark = read_benchmark(folder, num_authors=6, num_forget_authors=1, num_skipped=2, retain_every=7)
    assert {q.question.split()[0] for q in benchmark.forget} == {"a27"}
    kept = [f"a{a} q{i}" for a in (24, 25, 26, 28, 29) for i in range(20)]
    assert [q.question for q in benchmark.retain] == kept[::7]
    assert benchmark.holdout == []


def test_methods_are_shown_every_other_author_and_all_real_ones(folder):
    write(folder / "holdout10.jsonl", [{"question": "new", "answer": "b"}])
    benchmark = read_benchmark(folder, num_authors=6, num_forget_authors=2)
    seen, unseen = benchmark.split_retain()
    assert {p.question.split()[0] for p in seen} == {"a24", "a26", "real", "world"}
    assert {p.question.split()[0] for p in unseen} == {"a25", "a27"}
    assert len(seen) + len(unseen) == len(benchmark.retained_pairs)
    assert [p.question for p in benchmark.holdout] == ["new"]


def test_where_there_is_no_paraphrase_the_answer_stands_for_it(folder):
    found = read_questions(folder / "world_facts_perturbed.jsonl")[1]
    assert found == Question("world 1", "world 1 yes", "world 1 yes", ("world 1 no 0", "world 1 no 1", "world 1 no 2"))


@pytest.mark.parametrize("as_array", [False, True])
def test_the_authors_own_files_are_read(folder, as_array):
    """TOFU is published as JSON lines in .json."""
    before = read_benchmark(folder, num_authors=6)
    for path in folder.glob("*.jsonl"):
        text = path.read_text()
        if as_array:
            text = json.dumps([json.loads(line) for line in text.split("\n") if line], indent=1)
        path.with_suffix(".json").write_text(text)
        path.unlink()
    assert read_benchmark(folder, num_authors=6) == before


@pytest.mark.parametrize("num_authors, num_forget", [(2, 1), (21, 2), (199, 2), (6, 6), (6, 0)])
def test_sizes_without_wrong_answers_are_refused(folder, num_authors, num_forget):
    with pytest.raises(ValueError, match="must be"):
        read_benchmark(folder, num_authors=num_authors, num_forget_authors=num_forget)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"question": "q", "answer": "a"}',
        '{"question": "q", "answer": "", "perturbed_answer": ["x"]}',
        '{"question": "q", "answer": "a", "perturbed_answer": []}',
        '{"question": "q", "answer": "a", "perturbed_answer": 3}',
    ],
)
def test_a_line_that_is_no_question_is_named(folder, line):
    path = folder / "world_facts_perturbed.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match="line 6"):
        read_benchmark(folder, num_authors=6)


def test_a_missing_file_or_question_is_named(folder):
    (folder / "retain_perturbed.jsonl").unlink()
    read_benchmark(folder, num_authors=6)  # not needed here
    for name in ("real_authors", "world_facts"):
        (folder / f"{name}_perturbed.jsonl").unlink()
    with pytest.raises(DataError, match=r"real_authors_perturbed\.json, world_facts_perturbed\.json missing"):
        read_benchmark(folder, num_authors=6)
    for name in ("real_authors", "world_facts"):
        write(folder / f"{name}_perturbed.json", [question("q")])
    write(folder / "forget10_perturbed.jsonl", [question("a29 q0")])
    with pytest.raises(DataError, match=r"39 questions of full\.jsonl are missing, such as 'a28 q0'"):
        read_benchmark(folder, num_authors=6)
