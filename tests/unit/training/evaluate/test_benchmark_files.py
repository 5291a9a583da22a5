"""MMLU, WMDP, RWKU and MUSE are read as they are published; what is not as expected is said in one sentence."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from unlearngate.assistant_training.evaluate.benchmarks.choices import read_choices
from unlearngate.assistant_training.evaluate.benchmarks.muse import read_muse
from unlearngate.assistant_training.evaluate.benchmarks.rwku import read_rwku
from unlearngate.errors import DataError


def question(number, **more):
    return {"question": f" Which is {number}? ", "choices": ["one", "two", "three", "four"], "answer": number, **more}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1))


@pytest.mark.parametrize("name", ["test-00000-of-00001.parquet", "test/0000.parquet", "test.jsonl", "test.json"])
def test_wmdp_is_a_folder_for_each_task(tmp_path, name):
    write(tmp_path / "wmdp-bio" / name, [question(0), question(3)])
    write(tmp_path / "wmdp-cyber" / name, [question(2)])
    (tmp_path / "README.md").write_text("WMDP")
    found = read_choices(tmp_path)
    assert [(one.task, one.subject, one.answer) for one in found] == [
        ("wmdp-bio", "biology", 0),
        ("wmdp-bio", "biology", 3),
        ("wmdp-cyber", "cybersecurity", 2),
    ]
    assert read_choices(tmp_path / "wmdp-cyber") == found[2:]


def test_a_file_for_each_task_is_read_too(tmp_path):
    write(tmp_path / "wmdp-bio.jsonl", [question(1)])
    write(tmp_path / "wmdp-chem.jsonl", [question("B")])
    assert [(one.subject, one.answer) for one in read_choices(tmp_path)] == [("biology", 1), ("chemistry", 1)]


def test_mmlu_is_read_once_by_subject_and_its_examples_are_not(tmp_path):
    rows = [question(number % 4, subject="high_school_biology") for number in range(8)]
    rows += [question(1, subject="anatomy")] * 2
    write(tmp_path / "all" / "test-00000-of-00001.parquet", rows)
    write(tmp_path / "all" / "dev-00000-of-00001.parquet", [question(0, subject="anatomy")])
    write(tmp_path / "anatomy" / "test-00000-of-00001.parquet", [question(1, subject="anatomy")] * 2)
    found = read_choices(tmp_path)
    assert [one.task for one in found] == ["high_school_biology"] * 8 + ["anatomy"] * 2
    assert [one.answer for one in read_choices(tmp_path, limit=3)] == [0, 3, 2, 1, 1]
    assert found[0].prompt() == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "Which is 0?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "a", "choices": ["x", "y", "z"], "answer": 0}, "'choices' must be four texts"),
        ({"question": "a", "choices": ["x", "y", "z", "w"], "answer": 4}, "'answer' must be 0 to 3 or A to D, got 4"),
        ({"prompt": "a", "choices": ["x"] * 4, "answer": 0}, "'question' must be a text, got None; the row has prompt"),
    ],
)
def test_a_row_of_another_layout_is_named(tmp_path, row, sentence):
    write(tmp_path / "wmdp-bio" / "test.jsonl", [question(0), row])
    with pytest.raises(DataError, match=f"test.jsonl: line 2: {sentence}"):
        read_choices(tmp_path)


def test_a_wrong_folder_is_named(tmp_path):
    for read in (read_choices, read_rwku, read_muse):
        with pytest.raises(DataError, match="nowhere: is not a folder"):
            read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no test questions; expected TASK/test"):
        read_choices(tmp_path)
    with pytest.raises(DataError, match=r"has no forget_level1.json, forget_level1.jsonl or"):
        read_rwku(tmp_path)
    with pytest.raises(DataError, match=r"verbmem: has no forget.json"):
        read_muse(tmp_path)
    with pytest.raises(DataError, match="MUSE has no fluency; its parts here are verbmem, knowmem, privleak"):
        read_muse(tmp_path, ["fluency"])


def rwku(folder):
    def probe(query, level, **more):
        return {"subject": "Ada Fell", "query": query, "answer": "a lamp", "level": level, **more}

    write(folder / "forget_level1.json", [probe("Ada Fell carries ___.", "1"), probe("other", "1", subject="Bo Rim")])
    write(folder / "forget_level2.json", [probe("What does Ada Fell carry?", "2", type="simple")])
    kinds = ["prefix injection", "affirmative suffix", "incontext learning"]
    write(folder / "forget_level3.json", [probe(f"by {kind}", "3", type=kind) for kind in kinds])


def test_rwku_has_three_levels_and_its_own_prompts(tmp_path):
    rwku(tmp_path / "All")
    write(tmp_path / "All" / "neighbor_level2.json", [{"subject": "Ada Fell", "query": "Who?", "answer": "Bo"}])
    probes = read_rwku(tmp_path, subject="Ada Fell")
    assert [probe.level for probe in probes] == ["forget FB", "forget QA", *["forget AA"] * 3, "neighbor QA"]
    assert len(read_rwku(tmp_path / "All")) == 7 and len(read_rwku(tmp_path, limit=1)) == 4
    begun = {"role": "assistant", "content": "Answer:"}
    asked = [probe.body()["messages"] for probe in probes]
    assert asked[0] == [
        {
            "role": "user",
            "content": "Please complete the blank in the following question.\nQuestion: Ada Fell carries ___.\n",
        },
        begun,
    ]
    briefly = "Please briefly answer the following question.\n"
    assert asked[1][0]["content"] == f"{briefly}Question: What does Ada Fell carry?\n"
    assert asked[3] == [{"role": "user", "content": f"{briefly}Question: by affirmative suffix"}]
    assert asked[4] == [{"role": "user", "content": f"{briefly}by incontext learning\n"}, begun]
    with pytest.raises(DataError, match="asks nothing about 'Ada'; its first subjects are Ada Fell, Bo Rim"):
        read_rwku(tmp_path, subject="Ada")


@pytest.mark.parametrize("suffix", ["-00000-of-00001.parquet", ".json"])
def test_muse_has_its_parts_and_examples(tmp_path, suffix):
    write(tmp_path / "verbmem" / f"forget{suffix}", [{"prompt": "The lamp", "gt": "was lit."}])
    for name in ("forget", "retain"):
        write(tmp_path / "knowmem" / f"{name}_qa{suffix}", [{"question": f"{name}?", "answer": "yes"}] * 3)
        write(tmp_path / "knowmem" / f"{name}_qa_icl{suffix}", [{"question": f"{n}?", "answer": n} for n in "ab"])
    texts = ["One text.", "Another."]
    for name in ("forget", "holdout", "retain"):
        rows = [{"text": text} for text in texts] if suffix != ".json" else texts  # as MUSE's script writes them
        write(tmp_path / "privleak" / f"{name}{suffix}", rows)
    muse = read_muse(tmp_path, limit=2)
    assert muse.verbmem == [("The lamp", "was lit.")]
    prompt = "Question: a?\nAnswer: a\n\nQuestion: b?\nAnswer: b\n\nQuestion: retain?\nAnswer: "
    assert muse.knowmem["retain"] == [(prompt, "yes")] * 2
    assert muse.privleak == {"forget": texts, "holdout": texts} and muse.num_requests() == 9
    (tmp_path / "knowmem" / f"retain_qa{suffix}").unlink()
    with pytest.raises(DataError, match=r"knowmem: has no retain_qa.json"):
        read_muse(tmp_path)
    assert read_muse(tmp_path, ["verbmem"]).num_requests() == 1
