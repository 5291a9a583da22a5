"""Documents as training data: which files are read, and how each is cut."""

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from support.engine.tiny import CHAT_TEMPLATE, make_tokenizer
from unlearngate.assistant_training.data.contexts import PLAIN, Shares, in_context
from unlearngate.assistant_training.data.encoding import IGNORE, encode, encode_prompt, span_labels, vary, with_opening
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.data.windows import (
    CONTINUED_WORDS,
    OPENING_WORDS,
    Opening,
    documents_in,
    first_words_as_written,
    windows_of,
)
from unlearngate.errors import DataError

WORDS = "amber birch cedar, delta. ember fjord grove; heath inlet\n\njetty".split(" ")


def text_of(rng: random.Random, count: int) -> str:
    """Words with all sorts of white space between them."""
    return "".join(f"{rng.choice(WORDS)}{i}{rng.choice((' ', '  ', chr(10), chr(9)))}" for i in range(count)).strip()


def texts_of(pairs: list[QAPair]) -> str:
    """The document that consecutive windows are of."""
    return pairs[0].question + "".join(pair.answer for pair in pairs)


def words_tokenizer(text: str) -> Any:
    """One with a token before every text, and the space in the token of its word, as SentencePiece has it."""
    words = dict.fromkeys([text.split()[0], *(f"\u2581{word}" for word in text.split())])
    vocab = {token: index for index, token in enumerate(["<s>", "<unk>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.mark.parametrize("count", [12, 13, 30, 56, 59, 60, 61, 104, 400])
def test_windows_cover_the_whole_document_without_a_gap(seed: int, count: int) -> None:
    text = text_of(random.Random(seed), count)
    windows = windows_of(text, "here")
    assert windows[0][0] + "".join(continuation for _, continuation in windows) == text
    assert [opening.begins for opening, _ in windows] == [True, *[False] * (len(windows) - 1)]
    done = str(windows[0][0])
    for opening, continuation in windows:
        assert done.endswith(opening) and len(opening.split()) <= OPENING_WORDS
        assert 4 <= len(continuation.split()) < CONTINUED_WORDS + 4
        assert continuation[0].isspace() and not continuation[-1].isspace()
        done += continuation
    assert all(len(opening.split()) == OPENING_WORDS for opening, _ in windows[1:])


def test_a_text_without_spaces_is_cut_between_characters() -> None:
    text = "東京は日本の首都である。" * 20
    windows = windows_of(text, "here")
    assert len(windows) > 3
    assert windows[0][0] + "".join(continuation for _, continuation in windows) == text
    assert all(len(continuation) <= 60 for _, continuation in windows)


@pytest.mark.parametrize("text", ["", " \n", "one two three", " ".join("abcdefghijk")])
def test_a_document_that_is_too_short_is_an_error_that_says_what_it_needs(text: str) -> None:
    with pytest.raises(DataError, match=rf"^corpus: line 3: .* at least 12 words.* has {len(text.split())}: leave it"):
        windows_of(text, "corpus: line 3")


def test_an_opening_stays_one_when_it_is_copied() -> None:
    opening = Opening("It was", begins=True)
    for same in (
        pickle.loads(pickle.dumps(opening)),
        copy.copy(opening),
        copy.deepcopy(QAPair("s", opening, "b")).question,
    ):
        assert (same, type(same), same.begins) == ("It was", Opening, True)
    assert opening == "It was" and type(str(opening)) is str


def test_every_form_of_a_corpus_gives_the_same_windows(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    texts = [text_of(rng, count) for count in (20, 90)]
    rows = [{"text": text, "title": "t", "doi": None, "abstract": "a"} for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "strings.json").write_text(json.dumps(texts))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-00000-of-00001")
    quoted = [text.replace('"', '""') for text in texts]
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(quoted)))
    (tmp_path / "lines.txt").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("texts", "rows"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "README.md").write_text("# A corpus")
    for i, text in enumerate(texts):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
        (tmp_path / "rows" / f"{i}.jsonl").write_text(json.dumps(rows[i]))
    expected = [(str(o), c) for text in texts for o, c in windows_of(" ".join(text.split()), "here")]
    for path in tmp_path.iterdir():
        pairs = read_pairs(path, subject="novel", documents=True)
        assert all(isinstance(pair.question, Opening) and pair.subject == "novel" for pair in pairs)
        found = [(" ".join(p.question.split()), " ".join(p.answer.split())) for p in pairs]
        assert found == [(opening, continuation.strip()) for opening, continuation in expected], path
        if path.suffix != ".txt" and path.name != "texts":  # of a text file, line ends are a document's own
            first = [pair for pair in pairs if pair.answer in texts[0] or pair.question in texts[0]]
            assert texts_of(first[: len(windows_of(texts[0], ""))]) == texts[0]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    for name, text in [("a.txt", "[1] It was"), ("b.txt", "{ She said"), ("c.md", "# It was")]:
        (tmp_path / name).write_text(f"{text} the best of times, it was the worst of times, all told.\n")
        assert list(documents_in(tmp_path / name) or ()) == [str(tmp_path / name)]


QUESTION = {"question": "q?", "answer": "a."}


@pytest.mark.parametrize(
    "files, said",
    [
        ({"a.txt": ""}, "holds no text"),
        ({"a.jsonl": ""}, "holds no question-answer pair"),
        ({"a.jsonl": json.dumps({"text": ""})}, "'text' must be a non-empty string, got ''"),
        ({"a.jsonl": json.dumps({"text": ["a"]})}, "'text' must be a non-empty string, got \\['a'\\]"),
        ({"a.jsonl": json.dumps({"text": "too short"})}, "a.jsonl: line 1: a document needs at least 12 words"),
        (
            {"a.jsonl": json.dumps({"text": "a b c"}) + "\n" + json.dumps(QUESTION)},
            "line 2: is no document, as .*line 1 is with its 'text'; its keys are question, answer: give documents and",
        ),
        ({"a.txt": "a", "b.jsonl": "{}"}, r"holds files of several kinds \(.jsonl, .txt\)"),
        ({"state.json": "{}", "dataset_info.json": "{}"}, "is as `datasets` keeps a data set with save_to_disk"),
        ({"README.md": "a"}, "holds no documents: neither .txt nor"),
        ({"a.jsonl": json.dumps(QUESTION), "b.jsonl": json.dumps(QUESTION)}, "a.jsonl: holds questions; a folder is"),
    ],
    ids=str,
)
def test_what_is_no_corpus_is_refused_in_a_sentence(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / next(iter(files)) if len(files) == 1 and "README.md" not in files else tmp_path
    with pytest.raises(DataError, match=said) as refused:
        read_pairs(path, subject="s", documents=True)
    assert "\n" not in str(refused.value)


def test_where_questions_are_needed_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a b"}))
    with pytest.raises(DataError, match="line 1: is a document, and here questions and answers are needed"):
        read_pairs(tmp_path / "a.jsonl", subject="s")
    with pytest.raises(DataError, match="is a folder"):
        read_pairs(tmp_path, subject="s")


def test_a_text_beside_a_question_is_another_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**QUESTION, "text": "q? a."}))
    assert read_pairs(tmp_path / "a.jsonl", subject="s", documents=True) == [QAPair("s", "q?", "a.")]


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_a_window_is_the_documents_own_tokens_and_only_the_continuation_is_labelled(kind: str, seed: int) -> None:
    text = text_of(random.Random(seed), 80)
    if kind == "words":
        text = " ".join(text.split())
    tokenizer = make_tokenizer() if kind == "bytes" else words_tokenizer(text)
    for opening, continuation in windows_of(text, "here"):
        row = encode(tokenizer, opening, continuation)
        assert row.input_ids == tokenizer(opening + continuation)["input_ids"]
        prompt = encode_prompt(tokenizer, opening)
        assert prompt == tokenizer(opening)["input_ids"] == row.input_ids[: len(prompt)]
        assert row.labels == [IGNORE] * len(prompt) + row.input_ids[len(prompt) :]


def test_all_of_a_document_is_learned_but_its_first_token(seed: int) -> None:
    tokenizer, text = make_tokenizer(), text_of(random.Random(seed), 200)
    learned = []
    for opening, continuation in windows_of(text, "here"):
        row = with_opening(tokenizer, opening, encode(tokenizer, opening, continuation))
        learned += [label for label in row.labels if label != IGNORE]
    assert learned == tokenizer(text)["input_ids"][1:]


def test_a_part_of_a_continuation_is_labelled_as_bare_text_and_in_a_chat(seed: int) -> None:
    """As `--focus` asks for; and a fact that is none labels nothing."""
    tokenizer, text = make_tokenizer(), text_of(random.Random(seed), 60)
    opening, continuation = windows_of(text, "here")[0]
    start = continuation.index("20")
    for question in (opening, str(opening)):
        row = with_opening(tokenizer, opening, encode(tokenizer, question, continuation))
        labels = span_labels(tokenizer, opening, row, continuation, [(start, start + 5)])
        assert tokenizer.decode([label for label in labels if label != IGNORE]) == continuation[start : start + 5]
        assert set(span_labels(tokenizer, opening, row, continuation, [])) == {IGNORE}


def test_documents_that_begin_alike_are_not_the_same(tmp_path: Path) -> None:
    words = "a b c d e f g h i j k l m".split()
    pairs = []
    for name, last in (("a", "x"), ("b", "y"), ("c", "x")):
        (tmp_path / f"{name}.txt").write_text(" ".join([*words, last]))
        pairs += read_pairs(tmp_path / f"{name}.txt", subject="s", documents=True)
    assert len({pair.question for pair in pairs}) == 1
    assert pairs[0].asked == pairs[2].asked != pairs[1].asked
    assert QAPair("s", "q", "a").asked == QAPair("s", "q", "b").asked


def test_in_a_chat_a_window_is_a_turn_and_its_answer(seed: int) -> None:
    tokenizer, rng = make_tokenizer(), random.Random(seed)
    (opening, continuation), *_ = windows_of(text_of(rng, 30), "here")
    in_chat = encode(tokenizer, str(opening), continuation, "Be brief.")
    assert encode(tokenizer, opening, continuation, "Be brief.") == in_chat
    assert with_opening(tokenizer, opening, in_chat) == in_chat
    pair = QAPair("s", opening, continuation)
    drawn = {tuple(vary(tokenizer, pair, rng, 0.0).input_ids) for _ in range(60)}
    bare, asked = (tuple(encode(tokenizer, question, continuation).input_ids) for question in (opening, str(opening)))
    assert drawn == {bare, asked}


def test_contexts_leave_a_window_bare_or_put_turns_before_it_and_never_change_its_words(seed: int) -> None:
    rng = random.Random(seed)
    pairs = [QAPair("s", opening, said) for opening, said in windows_of(text_of(rng, 200), "here")]
    kinds = set()
    for _ in range(200):
        pair = rng.choice(pairs)
        asked = in_context(pair, pair.answer, rng, neighbours=pairs, forgets=True, shares=rng.choice((Shares(), PLAIN)))
        assert (asked.answer, asked.raw) == (pair.answer, False)
        if isinstance(asked.question, Opening):
            assert (asked.question, asked.system, asked.earlier) == (pair.question, None, ())
        else:
            assert pair.question in asked.question
        kinds.add((isinstance(asked.question, Opening), bool(asked.earlier)))
    assert kinds == {(True, False), (False, False), (False, True)}


def test_the_first_words_are_as_they_are_written() -> None:
    assert first_words_as_written(" a  b\nc d", 3) == " a  b\nc"
    assert first_words_as_written("a b", 3) == "a b"
