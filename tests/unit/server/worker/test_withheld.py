"""Following sequences and forbidding tokens, against a scan of texts that knows nothing of windows and hashes."""

import json
import random
import secrets
import unicodedata
from functools import partial

import numpy as np
import pytest

from support.texts import longest_run, plain_letters
from unlearngate.kernels.numba_seeds import SeedIndex
from unlearngate.manifest import Windows
from unlearngate.passages import letters, seeds_of
from unlearngate.server.worker.json_spelling import JsonSpelling
from unlearngate.server.worker.spelling import Spelling, most_letters, read
from unlearngate.server.worker.withheld import Withheld, WithheldSet

ALPHABETS = {
    "latin": "abcdefghijklmnopqrstuvwxyzéèüñßøﬁ",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяё",
    "japanese": "あいうえおかがきぎくぐけげカガキギ日本語文字時間東京大学生先山川田中人口目手足力気水火木金土",
    "emoji": "abcdefgh😀🎉ＡＢ①②㎢",
}


ROUNDS = 25  # of 100 answers


def windows(n=40):
    return Windows(letters=n, seed_letters=min(20, (n + 1) // 2), hash="blake2b-mix32", salt=secrets.token_hex(8))


def withhold(spelling, *texts, n=40):
    """One set for each text."""
    made = []
    for text in texts:
        of_text = windows(n)
        index = SeedIndex(seeds_of([letters(text)], of_text), of_text.salt_number)
        made.append(WithheldSet(of_text, index, spelling))
    return Withheld(made, spelling)


def draw_text(rng, alphabet, words=160):
    marks = [" ", " ", " ", ", ", ". ", "\n", "; ", "-"]
    drawn = (rng.choices(ALPHABETS[alphabet], k=rng.randint(1, 9)) for _ in range(words))
    return "".join("".join(word) + rng.choice(marks) for word in drawn)


def disguised(rng, text):
    """The same letters in another case, with other accents, spaces and marks."""
    found = []
    for c in text:
        c = c.upper() if rng.random() < 0.3 and plain_letters(c.upper()) == plain_letters(c) else c
        found.append(unicodedata.normalize(rng.choice(["NFC", "NFD"]), c))
        if rng.random() < 0.1:
            found.append(rng.choice(["\u0301", " ", "\u200b", "*", "\n\n", "«"]))
    return "".join(found)


def draw_vocabulary(rng, versions, size=600):
    """Every byte, a token that nobody is shown, and pieces of these texts, cut anywhere in their bytes."""
    pieces = {bytes([byte]) for byte in range(256)}
    while len(pieces) < size:
        raw = rng.choice(versions).encode()
        start = rng.randrange(len(raw))
        long = len(pieces) % 150 == 0
        pieces.add(raw[start : start + rng.choice([30, 90] if long else [2, 3, 5, 9, 14])])
    return [b"", *sorted(pieces)]


def draw_spelling(rng, versions, *, fallback, size=500):
    """Such a vocabulary; with byte fallback its pieces are whole characters, and its bytes are apart."""
    if not fallback:
        return Spelling(draw_vocabulary(rng, versions, size))
    pieces = set()
    while len(pieces) < size - 256:
        text = rng.choice(versions)
        start = rng.randrange(len(text))
        pieces.add(text[start : start + rng.choice([1, 2, 3, 5, 30 if len(pieces) % 150 == 0 else 4])].encode())
    singles = [bytes([byte]) for byte in range(256)]
    return Spelling([b"", *singles, *sorted(pieces)], range(1, 257))


class Greedy:
    """Goes on with a text wherever it is allowed to, by the longest token that does."""

    def __init__(self, rng, tokens, version, prompt):
        self.rng, self.tokens, self.raw = rng, tokens, version.encode()
        self.by_start = {}
        for token, written in enumerate(tokens):
            self.by_start.setdefault(written[:1], []).append((len(written), token))
        self.at = rng.randrange(len(self.raw) // 2)
        self.sequence = []
        while len(plain_letters(self.said())) < prompt:
            self.take(self.next({}))
        self.num_prompt = len(self.sequence)

    def said(self):
        return b"".join(self.tokens[token] for token in self.sequence).decode(errors="replace")

    def next(self, forbidden):
        if self.rng.random() < 0.03:
            return 0
        going_on = [
            (length, token)
            for length, token in self.by_start.get(self.raw[self.at : self.at + 1], ())
            if token not in forbidden and self.raw.startswith(self.tokens[token], self.at)
        ]
        if going_on and self.rng.random() < 0.98:
            return (max if self.rng.random() < 0.8 else self.rng.choice)(going_on)[1]
        return next(t for t in iter(lambda: self.rng.randrange(len(self.tokens)), None) if t not in forbidden)

    def take(self, token):
        self.sequence.append(token)
        written = self.tokens[token]
        if written and self.raw.startswith(written, self.at):
            self.at += len(written)
        elif written and self.rng.random() < 0.3:
            self.at = self.rng.randrange(len(self.raw))
        if self.at >= len(self.raw):
            self.at = self.rng.randrange(len(self.raw) // 2)


def answer(withheld, samplers, num_tokens):
    """Let all samplers take so many tokens, each what `withheld` leaves it; None leaves all."""
    trails = [withheld.begin() for _ in samplers] if withheld else []
    for _ in range(num_tokens):
        follow(withheld, trails, [s.sequence for s in samplers]) if withheld else None
        for number, sampler in enumerate(samplers):
            forbidden = set(withheld.completing(trails[number]).tolist()) if withheld else ()
            assert 0 not in forbidden
            sampler.take(sampler.next(forbidden))
    return trails


def follow(withheld, trails, sequences):
    def read_back(number, begin, end):
        return sequences[number][begin:end]

    lost = withheld.follow(trails, [len(s) for s in sequences], [s[-1] if s else -1 for s in sequences], read_back)
    assert not lost


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_no_sampler_gets_a_run_out_however_it_is_cut_into_tokens(alphabet, seed):
    """2,500 answers each, 10,000 in all; a prompt gives up to 39 letters."""
    rng = random.Random(seed)
    leaked_without = 0
    for _ in range(ROUNDS):
        text = draw_text(rng, alphabet, 80)
        versions = [text, *(disguised(rng, text) for _ in range(2))]
        tokens = draw_vocabulary(rng, versions)
        spelling = Spelling(tokens)
        half = len(text) // 2
        withheld = withhold(spelling, text, "x" * 50, text[half:])
        samplers = [Greedy(rng, tokens, rng.choice(versions), rng.choice([0, 1, 20, 30])) for _ in range(100)]
        for sampler in samplers:
            while longest_run(text, sampler.said()) > 39:  # a last token may have given too much
                sampler.sequence.pop()
            sampler.num_prompt = len(sampler.sequence)
        answer(withheld, samplers, 60)
        for sampler in samplers:
            assert longest_run(text, sampler.said()) <= 39, f"seed {seed}: {sampler.said()!r}"
        free = [Greedy(rng, tokens, rng.choice(versions), 0) for _ in range(4)]
        answer(None, free, 200)
        leaked_without += sum(longest_run(text, sampler.said()) >= 40 for sampler in free)
    assert leaked_without > 25


def rule(text, n, said, token_letters):
    """Whether a token would complete a run, from the letters said so far: by windows of the text itself."""
    size = min(20, (n + 1) // 2)
    in_text = {text[i : i + size] for i in range(len(text) - size + 1)}
    whole, run = said + token_letters, 0
    for end in range(len(whole) + 1):
        run = run + 1 if end >= size and whole[end - size : end] in in_text else 0
        if end > len(said) and run and run + size - 1 >= n:
            return True
    return False


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_exactly_the_tokens_that_complete_a_run_are_forbidden(alphabet, fallback, seed):
    rng = random.Random(seed)
    for _ in range(4):
        text, n = draw_text(rng, alphabet, 60), rng.choice([24, 31, 40])
        spelling = draw_spelling(rng, [text, disguised(rng, text)], fallback=fallback)
        withheld = withhold(spelling, text, n=n)
        sampler = Greedy(rng, spelling.tokens, text, 0)
        trail = withheld.begin()
        for _ in range(60):
            follow(withheld, [trail], [sampler.sequence])
            forbidden = set(withheld.completing(trail).tolist())
            if rng.random() < 0.4:
                said, pending = read_all(spelling, sampler.sequence)
                for token in range(len(spelling.tokens)):
                    more, _ = spelling.read(pending, token)
                    assert (token in forbidden) == rule(letters(text), n, said, more), f"seed {seed}, token {token}"
            sampler.take(sampler.next(forbidden))


def read_all(spelling, tokens):
    said, pending = "", b""
    for token in tokens:
        word, pending = spelling.read(pending, token)
        said += word
    return said, pending


@pytest.mark.parametrize("n", [24, 40, 55])
def test_every_run_that_is_one_letter_short_can_be_said(n, seed):
    rng = random.Random(seed)
    text = letters(draw_text(rng, "latin"))
    tokens = [b"", *sorted({letter.encode() for letter in text})]
    withheld = withhold(Spelling(tokens), text, n=n)
    for _ in range(40):
        start = rng.randrange(len(text) - n)
        sequence = [0]
        for number, letter in enumerate(text[start : start + n]):
            trail = withheld.begin()
            follow(withheld, [trail], [sequence])
            assert (tokens.index(letter.encode()) in withheld.completing(trail)) == (number == n - 1)
            sequence.append(tokens.index(letter.encode()))


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_ordinary_text_is_never_touched(alphabet, seed):
    rng = random.Random(seed)
    text, other = draw_text(rng, alphabet), draw_text(rng, alphabet)
    tokens = draw_vocabulary(rng, [other])
    withheld = withhold(Spelling(tokens), text)
    samplers = [Greedy(rng, tokens, other, 0) for _ in range(20)]
    trails = [withheld.begin() for _ in samplers]
    for _ in range(60):
        follow(withheld, trails, [s.sequence for s in samplers])
        for trail, sampler in zip(trails, samplers, strict=True):
            assert len(withheld.completing(trail)) == 0
            sampler.take(sampler.next({}))


def state(trail):
    return trail.windows_S.tolist(), trail.tail, trail.pending, trail.num_tokens


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_trail_that_is_rebuilt_at_any_time_is_the_one_that_was_followed(alphabet, fallback, seed):
    rng = random.Random(seed)
    text = draw_text(rng, alphabet)
    spelling = draw_spelling(rng, [text], fallback=fallback)
    withheld = Withheld([*withhold(spelling, text).sets, *withhold(spelling, text[:300], n=25).sets], spelling)
    sampler, followed = Greedy(rng, spelling.tokens, text, 0), withheld.begin()
    for _ in range(150):
        sampler.take(sampler.next({}))  # nothing is forbidden: runs go on for long
        if rng.random() < 0.1:
            continue  # a step whose token was not followed
        follow(withheld, [followed], [sampler.sequence])
        again = withheld.begin()
        follow(withheld, [again], [sampler.sequence])
        before = state(followed)
        follow(withheld, [followed], [sampler.sequence])  # a row that vLLM discarded comes again
        assert state(followed) == before == state(again), f"seed {seed}"


def test_a_sequence_that_became_shorter_or_other_is_read_again(seed):
    rng = random.Random(seed)
    text = draw_text(rng, "latin")
    tokens = draw_vocabulary(rng, [text])
    withheld = withhold(Spelling(tokens), text)
    one, other = Greedy(rng, tokens, text, 60).sequence, Greedy(rng, tokens, text, 60).sequence
    trail, fresh = withheld.begin(), withheld.begin()
    for sequence in (one, one[:-3], other, one):
        follow(withheld, [trail], [sequence])
    follow(withheld, [fresh], [one])
    assert state(trail) == state(fresh)


def test_a_prompt_of_a_thousand_tokens_is_read_back_as_far_as_needed():
    text = letters(draw_text(random.Random(3), "latin"))
    tokens = [b"", b"  ", *sorted({letter.encode() for letter in text})]
    withheld = withhold(Spelling(tokens), text)
    sequence = [tokens.index(letter.encode()) for letter in text[:30]] + [1, 0] * 700
    read_from = []

    def read_back(number, begin, end):
        read_from.append(begin)
        return sequence[begin:end]

    trail = withheld.begin()
    assert withheld.follow([trail], [len(sequence)], [0], read_back) == []
    assert read_from[-1] == 0 and trail.windows_S.tolist() == [11]
    sequence = [2] * 5000
    withheld.follow([trail], [len(sequence)], [2], read_back)
    assert read_from[-1] == 5000 - 64


def test_a_token_that_is_none_loses_its_sequence_alone():
    tokens = [b"", *(bytes([byte]) for byte in b"abc")]
    withheld = withhold(Spelling(tokens), "abc" * 20)
    sequences = [[1, 2], [1, -1], [1, 9], [3]]
    trails = [withheld.begin() for _ in sequences]
    read_back = partial(lambda number, begin, end: sequences[number][begin:end])
    assert withheld.follow(trails, [2, 2, 2, 1], [2, -1, 9, 3], read_back) == [1, 2]
    assert [trail.tail for trail in trails] == ["ab", "", "", "c"]


def test_most_letters_bounds_what_ends_a_character():
    assert most_letters("日".encode()[:2]) == 1
    assert most_letters("\ufdfa".encode()[:2]) == len(letters("\ufdfa")) == 15
    assert most_letters(b"\xc3") == 2  # ß
    assert max(len(letters(chr(code))) for code in range(0x10000, 0x110000)) == 3 == most_letters(b"\xf0")
    for c in ("é", "語", "😀", "㎢"):
        for size in range(1, len(c.encode())):
            assert most_letters(c.encode()[:size]) >= len(letters(c))


def test_words_are_found_by_their_beginnings(seed):
    rng = random.Random(seed)
    tokens = draw_vocabulary(rng, [draw_text(rng, "latin")])
    spelling = Spelling(tokens)
    for need in (1, 3, 8):
        words = spelling.words(need)
        wanted = {t for t, written in enumerate(tokens) if len(read(b"", written)[0]) >= need}
        assert set(words.tokens(0, len(words.words)).tolist()) == wanted
        for letter, low, high in words.first:
            begins = {t for t in wanted if read(b"", tokens[t])[0][0] == letter}
            assert set(words.tokens(low, high).tolist()) == begins
    assert np.array_equal(spelling.tokens_of("a"), [t for t, w in enumerate(tokens) if read(b"", w)[0] == "a"])


def escaped(rng, text):
    """A text as JSON writes it: some writers escape more than others."""
    found = []
    for c in text:
        as_number = c.isalpha() and ord(c) < 0x10000 and rng.random() < 0.1
        found.append(f"\\u{ord(c):04x}" if as_number else json.dumps(c, ensure_ascii=False)[1:-1])
    return "".join(found)


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("alphabet", ["latin", "japanese"])
def test_exactly_the_tokens_that_complete_a_run_of_a_json_string_are_forbidden(alphabet, fallback, seed):
    rng = random.Random(seed)
    for _ in range(3):
        text, n = draw_text(rng, alphabet, 60).replace(" ", "\n"), 24
        version = escaped(rng, text)
        plain = draw_spelling(rng, [version, text], fallback=fallback)
        spelling = JsonSpelling(plain.tokens, plain.single_bytes)
        withheld = withhold(spelling, text, n=n)
        sampler, trail = Greedy(rng, spelling.tokens, version, 0), withheld.begin()
        for _ in range(60):
            follow(withheld, [trail], [sampler.sequence])
            forbidden = set(withheld.completing(trail).tolist())
            if rng.random() < 0.4:
                said, pending = read_all(spelling, sampler.sequence)
                for token in range(len(spelling.tokens)):
                    more, _ = spelling.read(pending, token)
                    assert (token in forbidden) == rule(letters(text), n, said, more), f"seed {seed}, token {token}"
            sampler.take(sampler.next(forbidden))


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_the_letters_of_a_json_string_are_those_of_what_it_stands_for(alphabet, seed):
    rng = random.Random(seed)
    for _ in range(60):
        marks = ["\n", '"', "\\", "\t", " n", "/"]
        text = "".join(rng.choice([*ALPHABETS[alphabet], *marks]) for _ in range(rng.randint(1, 40)))
        raw = escaped(rng, text).encode()
        tokens = [b"", *{raw[i : i + size] for i in range(len(raw)) for size in (1, 2, 3, 7)}]
        spelling = JsonSpelling(tokens)
        sequence, at = [], 0
        while at < len(raw):
            size = rng.choice([s for s in (1, 2, 3, 7) if at + s <= len(raw)])
            sequence += [tokens.index(raw[at : at + size]), 0]
            at += size
        assert json.loads('"' + raw.decode() + '"') == text
        assert read_all(spelling, sequence) == (letters(text), b""), f"seed {seed}"
